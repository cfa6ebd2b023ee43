//! Publishes commands: just enough AMQP 0-9-1, over a blocking socket, to fill a queue as fast as the broker
//! takes it and to send at a fixed rate at next to no cost. The load shares the processors with what is
//! measured, and a full client would take a good part of them.

use std::{
    io::{BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

/// No answer, or no room to write, for this long is an error.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is gathered before it is written, unless flushed.
const BATCH: usize = 64 * 1024;

const CHANNEL: u16 = 1;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;

type Method = (u16, u16);
const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const QUEUE_DECLARE: Method = (50, 10);
const QUEUE_DECLARE_OK: Method = (50, 11);
const QUEUE_PURGE: Method = (50, 30);
const QUEUE_PURGE_OK: Method = (50, 31);
const PUBLISH: Method = (60, 40);

const DURABLE: u8 = 0b10;
/// Properties that are present: content type and delivery mode, and where receipts are wanted reply-to.
const PROPERTIES: u16 = 1 << 15 | 1 << 12;
const REPLY_TO: u16 = 1 << 9;
const TRANSIENT: u8 = 1;

/// A connection that publishes to one queue through the default exchange.
#[derive(Debug)]
pub(crate) struct Publisher {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    version: String,
    batch: Vec<u8>,
}

impl Publisher {
    /// Connects and opens a channel.
    pub(crate) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .context("cannot connect to the broker")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let answers = BufReader::new(stream.try_clone()?);
        let mut publisher =
            Self { stream, answers, version: String::new(), batch: Vec::with_capacity(2 * BATCH) };

        publisher.batch.extend_from_slice(b"AMQP\x00\x00\x09\x01");
        let start = publisher.answer(START)?;
        publisher.version = version(&start).unwrap_or_else(|| "unknown".to_owned());
        publisher.send(
            0,
            Arguments::of(START_OK).long(0).short("PLAIN").text(b"\0guest\0guest").short("en_US"),
        );
        let tune = publisher.answer(TUNE)?;
        // As many channels and as large frames as it offers; no heartbeats.
        let offered: [u8; 6] = *tune.first_chunk().context("a short connection.tune")?;
        publisher.send(0, Arguments::of(TUNE_OK).bytes(&offered).word(0));
        publisher.send(0, Arguments::of(OPEN).short("/").short("").octet(0));
        publisher.answer(OPEN_OK)?;
        publisher.send(CHANNEL, Arguments::of(CHANNEL_OPEN).short(""));
        publisher.answer(CHANNEL_OPEN_OK)?;
        Ok(publisher)
    }

    /// The version the broker gives itself.
    pub(crate) fn broker_version(&self) -> &str {
        &self.version
    }

    /// Makes sure that there is a durable classic queue of this name; how many messages wait in it, not counting
    /// those that a consumer holds, nor those still on their way from a channel to the queue.
    pub(crate) fn declare(&mut self, queue: &str) -> Result<u32> {
        self.send(
            CHANNEL,
            Arguments::of(QUEUE_DECLARE).word(0).short(queue).octet(DURABLE).long(0),
        );
        let answer = self.answer(QUEUE_DECLARE_OK)?;
        let count = answer.get(1 + queue.len()..).and_then(|rest| rest.first_chunk());
        Ok(u32::from_be_bytes(*count.context("a queue.declare-ok without a count")?))
    }

    /// Throws away what waits in the queue.
    pub(crate) fn purge(&mut self, queue: &str) -> Result<()> {
        self.send(CHANNEL, Arguments::of(QUEUE_PURGE).word(0).short(queue).octet(0));
        self.answer(QUEUE_PURGE_OK).map(drop)
    }

    /// Publishes a transient message. It may stay here until `flush`.
    pub(crate) fn publish(&mut self, queue: &str, body: &[u8]) -> Result<()> {
        self.publish_with(queue, body, None)
    }

    /// The same for a message whose receipts go to the queue `reply_to`.
    pub(crate) fn publish_for_receipts(
        &mut self,
        queue: &str,
        body: &[u8],
        reply_to: &str,
    ) -> Result<()> {
        self.publish_with(queue, body, Some(reply_to))
    }

    fn publish_with(&mut self, queue: &str, body: &[u8], reply_to: Option<&str>) -> Result<()> {
        self.send(CHANNEL, Arguments::of(PUBLISH).word(0).short("").short(queue).octet(0));
        let header = Arguments::of((PUBLISH.0, 0)).long(0).long(u32::try_from(body.len())?);
        let present = PROPERTIES | reply_to.map_or(0, |_| REPLY_TO);
        let header = header.word(present).short("application/json").octet(TRANSIENT);
        let header = reply_to.into_iter().fold(header, Arguments::short);
        frame(&mut self.batch, HEADER, CHANNEL, &header.0);
        frame(&mut self.batch, BODY, CHANNEL, body);
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Hands all that was published to the kernel.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.batch).context("cannot write to the broker")?;
        self.batch.clear();
        Ok(())
    }

    fn send(&mut self, channel: u16, method: Arguments) {
        frame(&mut self.batch, METHOD, channel, &method.0);
    }

    /// Flushes and waits for this method; its arguments.
    fn answer(&mut self, wanted: Method) -> Result<Vec<u8>> {
        self.flush()?;
        let mut head = [0; 7];
        self.answers.read_exact(&mut head).context("no answer from the broker")?;
        let [kind, _, _, size @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes(size) as usize + 1];
        self.answers.read_exact(&mut payload).context("half an answer from the broker")?;
        ensure!(
            kind == METHOD && payload.pop() == Some(FRAME_END),
            "not a method frame from the broker"
        );
        let [a, b, c, d, ..] = payload[..] else { bail!("an empty method frame from the broker") };
        let got = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let arguments = payload.split_off(4);
        ensure!(
            got == wanted,
            "wanted {wanted:?} of the broker, got {got:?} {}",
            String::from_utf8_lossy(&arguments)
        );
        Ok(arguments)
    }
}

/// The arguments of a method, or the properties of a header, as they go over the wire.
struct Arguments(Vec<u8>);

impl Arguments {
    fn of((class, method): Method) -> Self {
        Self(Vec::with_capacity(64)).word(class).word(method)
    }

    fn octet(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn word(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn long(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    /// A string of at most 255 bytes: names of ours.
    fn short(self, value: &str) -> Self {
        self.octet(u8::try_from(value.len()).unwrap_or(u8::MAX)).bytes(value.as_bytes())
    }

    fn text(self, value: &[u8]) -> Self {
        self.long(u32::try_from(value.len()).unwrap_or(u32::MAX)).bytes(value)
    }
}

fn frame(batch: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    batch.push(kind);
    batch.extend_from_slice(&channel.to_be_bytes());
    batch.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    batch.extend_from_slice(payload);
    batch.push(FRAME_END);
}

/// The field `version` of the properties the broker introduces itself with: its name, `S` for a string, the
/// string's size and the string.
fn version(start: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\x07versionS";
    let at = start.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let (size, text) = start.get(at..)?.split_first_chunk()?;
    let text = text.get(..u32::from_be_bytes(*size) as usize)?;
    Some(String::from_utf8_lossy(text).into_owned())
}
