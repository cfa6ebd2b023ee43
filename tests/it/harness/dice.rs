//! Randomness that can be had again: the seed is printed, and `RABBITLINE_SEED` sets it.

pub(crate) struct Dice(u64);

impl Dice {
    /// Seeded by the clock, or by the environment. What a failed test printed says how to repeat it.
    pub(crate) fn new() -> Self {
        let given =
            std::env::var_os("RABBITLINE_SEED").and_then(|seed| seed.to_str()?.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("after 1970").as_micros() as u64
        });
        println!("to repeat this: RABBITLINE_SEED={seed}");
        Self(seed | 1)
    }

    /// A number below `limit` (xorshift64*).
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}
