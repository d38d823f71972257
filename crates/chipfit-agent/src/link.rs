//! One connection as both state machines see it: messages out, link events in.
//!
//! Two tasks move bytes, one each way; coding happens where the state machine runs, so that agreed limits hold from the very
//! next byte on. Nothing queues without bound: a writer that is [`QUEUED_MESSAGES`] behind is a dead link, and a
//! reader stops reading while [`QUEUED_CHUNKS`] chunks wait.

use chipfit_wire::frame::{Decoder, Encoder};
use chipfit_wire::message::Message;
use chipfit_wire::session::{LinkAction, LinkEvent, LinkId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::stream::{Duplex, is_refusal};

/// Messages that may wait for the wire.
const QUEUED_MESSAGES: usize = 16;
/// Chunks of bytes that may wait for the state machine, all links together.
pub(crate) const QUEUED_CHUNKS: usize = 8;
const READ_BYTES: usize = 1 << 17;

/// What a link's reader found.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Bytes.
    Bytes(Vec<u8>),
    /// The connection is gone.
    Gone {
        /// Why.
        why: String,
        /// The other end does not believe the certificate.
        is_refusal: bool,
    },
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    encoder: Encoder,
    decoder: Decoder,
    outgoing: mpsc::Sender<Vec<u8>>,
    reader: JoinHandle<()>,
    is_refused: bool,
    /// Bytes of messages sent, frame headers included.
    pub(crate) sent: u64,
}

impl Link {
    /// Starts the tasks of a connection; what arrives goes to `arrivals` under this number.
    pub(crate) fn start(id: LinkId, stream: Box<dyn Duplex>, arrivals: mpsc::Sender<(LinkId, Arrival)>) -> Self {
        let (from, to) = tokio::io::split(stream);
        let (outgoing, queue) = mpsc::channel(QUEUED_MESSAGES);
        let reader = tokio::spawn(read(id, from, arrivals));
        tokio::spawn(write(to, queue));
        Self { encoder: Encoder::new(), decoder: Decoder::new(), outgoing, reader, is_refused: false, sent: 0 }
    }

    /// The events of what arrived, in order.
    pub(crate) fn events(&mut self, bytes: &[u8]) -> Vec<LinkEvent> {
        if self.is_refused {
            return Vec::new();
        }
        let mut messages = Vec::new();
        let pushed = self.decoder.push(bytes, &mut messages);
        let mut events: Vec<LinkEvent> = messages.into_iter().map(LinkEvent::Message).collect();
        if let Err(error) = pushed {
            self.is_refused = true;
            events.push(LinkEvent::Refused(error));
        }
        if events.is_empty() {
            events.push(LinkEvent::Alive);
        }
        events
    }

    /// Carries out an action; the reason when the link is of no use any more.
    ///
    /// # Errors
    /// Why the message could not be sent.
    pub(crate) fn act(&mut self, action: LinkAction) -> Result<(), String> {
        match action {
            LinkAction::Send(message) => self.send(&message),
            LinkAction::Agree { limits, minor } => {
                self.encoder.agree(limits, minor);
                self.decoder.agree(limits);
                Ok(())
            }
            // The caller drops the link: its writer sends what is queued, then ends the connection.
            LinkAction::Close => Ok(()),
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), String> {
        let is_idle = self.outgoing.capacity() == self.outgoing.max_capacity();
        if matches!(message, Message::Heartbeat(_)) && !is_idle {
            return Ok(());
        }
        let bytes = self.encoder.encode(message).map_err(|error| error.to_string())?;
        self.sent = self.sent.saturating_add(bytes.len() as u64);
        self.outgoing.try_send(bytes).map_err(|_| "the other end does not take what is sent".to_owned())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(id: LinkId, mut from: ReadHalf<Box<dyn Duplex>>, arrivals: mpsc::Sender<(LinkId, Arrival)>) {
    let mut buffer = vec![0; READ_BYTES];
    let gone = loop {
        match from.read(&mut buffer).await {
            Ok(0) => break Arrival::Gone { why: "the other end closed the connection".to_owned(), is_refusal: false },
            Ok(read) => {
                let bytes = buffer.get(..read).unwrap_or_default().to_vec();
                if arrivals.send((id, Arrival::Bytes(bytes))).await.is_err() {
                    return;
                }
            }
            Err(error) => break Arrival::Gone { why: error.to_string(), is_refusal: is_refusal(&error) },
        }
    };
    // The state machine may be gone already.
    let _ = arrivals.send((id, gone)).await;
}

async fn write(mut to: WriteHalf<Box<dyn Duplex>>, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            // The reader learns of it, too.
            return;
        }
    }
    // The other end may have gone already.
    let _ = to.shutdown().await;
}
