//! Randomness that can be had again: the seed is printed, and `RABBITLINE_SEED` sets it.

pub(crate) struct Dice(u64);

impl Dice {
    /// Seeded by the clock, or by the environment. What a failed test printed says how to repeat it.
    pub(crate) fn new() -> Self {
        let seed = Self::given_seed().unwrap_or_else(Self::fresh_seed);
        println!("to repeat this: RABBITLINE_SEED={seed}");
        Self(seed | 1)
    }

    /// The seed in the environment.
    pub(crate) fn given_seed() -> Option<u64> {
        std::env::var_os("RABBITLINE_SEED").and_then(|seed| seed.to_str()?.parse().ok())
    }

    /// A seed of the clock.
    pub(crate) fn fresh_seed() -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_micros() as u64
    }

    /// Seeded by `seed`, whose neighbours give something quite different (splitmix64).
    pub(crate) fn of(seed: u64) -> Self {
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((mixed ^ (mixed >> 31)) | 1)
    }

    /// A number below `limit` (xorshift64*).
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of a few.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
