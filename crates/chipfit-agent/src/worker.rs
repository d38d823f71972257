//! The processor in a child process: killable at any moment, restartable.
//!
//! The daemon starts its own program again with one hidden argument. The child's standard input carries the
//! configuration (its length as u32, then JSON), then the messages of `host` in the protocol's frames; its standard
//! output carries the answers. The child ends when its standard input does, whatever it is computing, so that none
//! outlives its daemon. Both ends are the same program: the pipe is trusted, and still decoded like any other bytes.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use chipfit_wire::frame::{Decoder, Encoder};
use chipfit_wire::message::{Limits, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::config::DeviceConfig;
use crate::host::Host;

/// How the child is started: the program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Limits on the pipe: what the network allows, and more.
const PIPE_LIMITS: Limits = Limits { frame: 1 << 24, tensor: u32::MAX, in_flight: u32::MAX, sessions: 1 };
const READ_BYTES: usize = 1 << 18;
/// No configuration is longer.
const MOST_CONFIG_BYTES: u32 = 1 << 22;

/// A child process that waits for messages, seen by the daemon. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    encoder: Encoder,
    decoder: Decoder,
    answers: u64,
}

fn coders() -> (Encoder, Decoder) {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    encoder.agree(PIPE_LIMITS, chipfit_wire::frame::MINOR);
    decoder.agree(PIPE_LIMITS);
    (encoder, decoder)
}

impl Worker {
    /// Starts a child and tells it what to host.
    pub(crate) async fn start(command: &WorkerCommand, config: &DeviceConfig) -> io::Result<Self> {
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        let config = serde_json::to_vec(config).map_err(io::Error::other)?;
        let length = u32::try_from(config.len()).map_err(io::Error::other)?;
        input.write_all(&length.to_le_bytes()).await?;
        input.write_all(&config).await?;
        let (encoder, decoder) = coders();
        Ok(Self { child, input, output, encoder, decoder, answers: 0 })
    }

    /// The child's process number.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it has answered only once.
    pub(crate) fn is_new(&self) -> bool {
        self.answers == 1
    }

    /// Sends a message and waits for the answer, however long that takes.
    ///
    /// # Errors
    /// How the child ended, in words; it is of no use then.
    pub(crate) async fn ask(&mut self, message: &Message) -> Result<Message, String> {
        match self.exchange(message).await {
            Ok(answer) => {
                self.answers += 1;
                Ok(answer)
            }
            Err(error) => Err(self.ending(&error).await),
        }
    }

    async fn exchange(&mut self, message: &Message) -> io::Result<Message> {
        let bytes = self.encoder.encode(message).map_err(io::Error::other)?;
        self.input.write_all(&bytes).await?;
        self.input.flush().await?;
        let mut buffer = vec![0; READ_BYTES];
        let mut messages = Vec::new();
        loop {
            let read = self.output.read(&mut buffer).await?;
            let part = buffer.get(..read).unwrap_or_default();
            if part.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.push(part, &mut messages).map_err(io::Error::other)?;
            if let Some(answer) = messages.pop() {
                return Ok(answer);
            }
        }
    }

    /// How a child that broke the pipe ended.
    async fn ending(&mut self, error: &io::Error) -> String {
        const GRACE: Duration = Duration::from_millis(500);
        match timeout(GRACE, self.child.wait()).await {
            Ok(Ok(status)) => format!("the processor's process ended: {status}"),
            _ => format!("the pipe to the processor's process broke: {error}"),
        }
    }
}

/// The child's whole life: reads messages from standard input, writes answers to standard output.
///
/// Never returns: the process ends with status 0 when standard input ends, else 1.
pub fn run_worker() -> ! {
    let status = match serve(io::stdin(), io::stdout().lock()) {
        Ok(()) => 0,
        Err(error) => {
            // The daemon shares this standard error; when nobody listens the status still tells.
            let _ = writeln!(io::stderr(), "the processor's process: {error}");
            1
        }
    };
    std::process::exit(status)
}

fn serve(mut input: io::Stdin, mut output: impl Write) -> io::Result<()> {
    let config = read_config(&mut input)?;
    let (sender, receiver) = mpsc::sync_channel::<io::Result<Message>>(4);
    let (mut encoder, mut decoder) = coders();
    std::thread::Builder::new().name("pipe".to_owned()).spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        let mut messages = Vec::new();
        loop {
            let part = match input.read(&mut buffer) {
                Ok(read) => buffer.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => &[],
            };
            if part.is_empty() {
                // The daemon is gone: nobody waits for what is being computed.
                std::process::exit(0);
            }
            let pushed = decoder.push(part, &mut messages).map_err(io::Error::other);
            let all = messages.drain(..).map(Ok).chain(pushed.err().map(Err));
            for message in all {
                if sender.send(message).is_err() {
                    return;
                }
            }
        }
    })?;
    let mut host = Host::new(config);
    while let Ok(message) = receiver.recv() {
        let answer = host.answer(message?);
        let bytes = encoder.encode(&answer).map_err(io::Error::other)?;
        output.write_all(&bytes)?;
        output.flush()?;
    }
    Ok(())
}

fn read_config(input: &mut impl Read) -> io::Result<DeviceConfig> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length).min(MOST_CONFIG_BYTES);
    let mut json = Vec::new();
    input.take(u64::from(length)).read_to_end(&mut json)?;
    serde_json::from_slice(&json).map_err(io::Error::other)
}
