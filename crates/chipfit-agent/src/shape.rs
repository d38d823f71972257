//! An emulated link: a rate and a one-way delay laid over a real connection, for measurements on one machine.
//!
//! Both directions are shaped at the trainer's end, below TLS, so that one set of flags describes the link. Each direction
//! is a token bucket and a delay line: `n` bytes leave at `max(link free, now - 2 ms) + 8 n / rate` and arrive `delay`
//! later. The bucket of 2 ms makes up for the clock's grain; what it lends on an idle link is 2 ms of the rate.
//! Acknowledgements, packet headers and loss are not emulated.

use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::error::AgentError;

/// Bytes that travel together: 13 ms at 10 Mbit/s.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction: 16 MiB at most.
const CHUNKS_ON_THE_WAY: usize = 1024;
/// Depth of the bucket.
const GRAIN: Duration = Duration::from_millis(2);

/// A rate in bits per second, above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// Bits per second.
    pub fn bits_per_second(self) -> u64 {
        self.0.get()
    }

    /// How long `bytes` bytes occupy the link.
    fn time(self, bytes: usize) -> Duration {
        let nanoseconds = bytes as u128 * 8 * 1_000_000_000 / u128::from(self.0.get());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

impl FromStr for Rate {
    type Err = AgentError;

    /// `10Mbit`: digits and one of kbit, Mbit, Gbit (powers of 1000).
    fn from_str(text: &str) -> Result<Self, AgentError> {
        const UNITS: [(&str, u64); 3] = [("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000)];
        let number = number_of(text, &UNITS).and_then(NonZeroU64::new);
        number.map(Self).ok_or_else(|| AgentError::Value {
            value: text.escape_debug().to_string(),
            what: "rate; digits and kbit, Mbit or Gbit are expected, as in 10Mbit",
        })
    }
}

/// A one-way delay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay(Duration);

impl Delay {
    /// The delay as a duration.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Delay {
    type Err = AgentError;

    /// `25ms`: digits and one of us, ms, s; an hour at most.
    fn from_str(text: &str) -> Result<Self, AgentError> {
        const UNITS: [(&str, u64); 3] = [("us", 1), ("ms", 1_000), ("s", 1_000_000)];
        let number = number_of(text, &UNITS).filter(|&microseconds| microseconds <= 3_600_000_000);
        number.map(|microseconds| Self(Duration::from_micros(microseconds))).ok_or_else(|| AgentError::Value {
            value: text.escape_debug().to_string(),
            what: "delay; digits and us, ms or s are expected, as in 25ms",
        })
    }
}

/// Digits before one of the units, times the unit.
fn number_of(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(end);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// What the link is to look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkShape {
    /// Rate in each direction; as fast as it goes when `None`.
    pub rate: Option<Rate>,
    /// Delay in each direction: half of the round trip.
    pub delay: Delay,
}

impl LinkShape {
    /// Whether the link stays as it is.
    pub fn is_open(self) -> bool {
        self == Self::default()
    }
}

/// The other end of `stream`, seen through a link of this shape. Two tasks carry the bytes until either end closes.
pub(crate) fn shaped<S>(stream: S, shape: LinkShape) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (near, far) = tokio::io::duplex(4 * CHUNK_BYTES);
    let (from_far, to_far) = tokio::io::split(far);
    let (from_socket, to_socket) = tokio::io::split(stream);
    tokio::spawn(carry(from_far, to_socket, shape));
    tokio::spawn(carry(from_socket, to_far, shape));
    near
}

/// Carries bytes one way until there are no more, or nobody takes them.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, shape: LinkShape) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_ON_THE_WAY);
    let enter = async move {
        let mut free = Instant::now();
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(bytes @ 1..) = from.read(&mut chunk).await {
            let now = Instant::now();
            let start = now.checked_sub(GRAIN).map_or(now, |earliest| free.max(earliest));
            free = start + shape.rate.map_or(Duration::ZERO, |rate| rate.time(bytes));
            let Some(part) = chunk.get(..bytes) else { break };
            if sender.send((free + shape.delay.0, part.to_vec())).await.is_err() {
                break;
            }
            if free > now {
                sleep_until(free).await;
            }
        }
    };
    let leave = async move {
        while let Some((at, chunk)) = receiver.recv().await {
            if at > Instant::now() {
                sleep_until(at).await;
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The other end may have gone already.
        let _ = to.shutdown().await;
    };
    tokio::join!(enter, leave);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Option<u64> {
        text.parse::<Rate>().ok().map(Rate::bits_per_second)
    }

    #[test]
    fn rates_and_delays_are_read_strictly() {
        assert_eq!(rate("10Mbit"), Some(10_000_000));
        assert_eq!(rate("128kbit"), Some(128_000));
        assert_eq!(rate("1Gbit"), Some(1_000_000_000));
        for bad in [
            "",
            "10",
            "Mbit",
            "10mbit",
            "10 Mbit",
            "1.5Mbit",
            "-1Mbit",
            "+1Mbit",
            "0Mbit",
            "10Mbits",
            "99999999999999999999kbit",
            "99999999999999Gbit",
        ] {
            assert_eq!(rate(bad), None, "{bad:?}");
        }
        let delay = |text: &str| text.parse::<Delay>().ok().map(Delay::duration);
        assert_eq!(delay("25ms"), Some(Duration::from_millis(25)));
        assert_eq!(delay("0ms"), Some(Duration::ZERO));
        assert_eq!(delay("3s"), Some(Duration::from_secs(3)));
        for bad in ["", "25", "ms", "25 ms", "25m", "2h", "-1ms", "9999999999s"] {
            assert_eq!(delay(bad), None, "{bad:?}");
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    /// Seconds until `bytes` bytes have crossed, each way in turn, and come back whole.
    fn crossing(bytes: usize, shape: LinkShape) -> (f64, f64) {
        runtime().block_on(async {
            let (socket, mut other) = tokio::io::duplex(1 << 20);
            let mut near = shaped(socket, shape);
            let sent: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
            let mut came = vec![0; bytes];
            let begin = Instant::now();
            let (wrote, read) = tokio::join!(near.write_all(&sent), other.read_exact(&mut came));
            wrote.and(read.map(|_| ())).expect("up");
            assert_eq!(came, sent);
            let up = begin.elapsed().as_secs_f64();
            let begin = Instant::now();
            let (wrote, read) = tokio::join!(other.write_all(&sent), near.read_exact(&mut came));
            wrote.and(read.map(|_| ())).expect("down");
            assert_eq!(came, sent);
            (up, begin.elapsed().as_secs_f64())
        })
    }

    #[test]
    fn bytes_take_the_time_of_rate_and_delay_in_both_directions() {
        let shape = LinkShape { rate: "10Mbit".parse().ok(), delay: "30ms".parse().expect("a delay") };
        // 100,000 bytes at 10 Mbit/s are 80 ms, and the first byte takes 30 ms; the bucket lends 2 ms.
        let (up, down) = crossing(100_000, shape);
        for seconds in [up, down] {
            assert!((0.107..0.6).contains(&seconds), "{seconds}");
        }
    }

    #[test]
    fn the_end_of_the_bytes_comes_through() {
        runtime().block_on(async {
            let (socket, mut other) = tokio::io::duplex(1 << 16);
            let mut near = shaped(socket, LinkShape { rate: None, delay: "1ms".parse().expect("a delay") });
            near.write_all(b"last").await.expect("written");
            near.shutdown().await.expect("closed");
            let mut all = Vec::new();
            other.read_to_end(&mut all).await.expect("read");
            assert_eq!(all, b"last");
        });
    }
}
