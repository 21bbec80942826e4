//! What both sides of a tunnel share: the settings of HTTP/2, pings, and what ends a tunnel from within.

use std::rc::Rc;
use std::time::Duration;

use h2::{Ping, PingPong, client, server};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::settings::{FRAME_PAYLOAD, HEADER_LIST, TunnelSettings};
use super::state::{TunnelEnd, TunnelState};
use super::trunk::Shared;
use crate::identity::{PeerSide, Trust};

/// Streams that one side has reset and the other may still send to, for as long as [`RESET_MEMORY`].
const RESET_STREAMS: usize = 64;
const RESET_MEMORY: Duration = Duration::from_secs(5);

/// Streams that the client may reset before the server has looked at them, and streams the server may have to reset
/// for the client's errors, before the tunnel is ended: what a "rapid reset" (CVE-2023-44487) can make us do.
const HASTY_RESETS: usize = 100;
const RESETS_FOR_ERRORS: usize = 1024;

/// The longest list of buffered frames that `h2` may keep per stream to be sent.
const SEND_BUFFER: usize = 2 * FRAME_PAYLOAD;

/// [`FRAME_PAYLOAD`] as HTTP/2 has it.
#[allow(clippy::cast_possible_truncation, reason = "64 KiB")]
const FRAME_SIZE: u32 = FRAME_PAYLOAD as u32;

/// `h2` ends a tunnel of which the unread small frames take more bookkeeping than this, so that a peer cannot make a
/// receiver keep a list of single bytes. A relay takes frames as they come, those that its socket does not take yet
/// included; they pile up only between two turns of the event loop, and this is what two windows' worth may take.
fn frame_budget(settings: &TunnelSettings) -> usize {
    usize::try_from(settings.connection_window()).unwrap_or(usize::MAX).saturating_mul(2)
}

pub(super) fn client_builder(settings: &TunnelSettings, capacity: usize) -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window())
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(frame_budget(settings))
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_MEMORY)
        // Until the peer has said how many it takes. It refuses those beyond, which are then opened elsewhere.
        .initial_max_send_streams(capacity);
    builder
}

pub(super) fn server_builder(settings: &TunnelSettings) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window())
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(frame_budget(settings))
        .max_concurrent_streams(settings.streams_per_tunnel)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_MEMORY)
        .max_pending_accept_reset_streams(HASTY_RESETS)
        .max_local_error_reset_streams(Some(RESETS_FOR_ERRORS));
    builder
}

/// Asks a peer whether it is there.
pub(super) trait Pings {
    /// Waits for the answer. An error when the connection has ended.
    async fn ping(&mut self) -> Result<(), ()>;
}

impl Pings for Option<PingPong> {
    async fn ping(&mut self) -> Result<(), ()> {
        match self {
            Some(pings) => pings.ping(Ping::opaque()).await.map(drop).map_err(drop),
            None => Err(()),
        }
    }
}

impl Pings for Rc<Shared> {
    async fn ping(&mut self) -> Result<(), ()> {
        Shared::ping(self).await
    }
}

/// Pings the peer now and then, and whenever `doubt` is told; `answered` after each answer. Returns when there is none.
pub(super) async fn silence(
    mut pings: impl Pings,
    settings: &TunnelSettings,
    doubt: &Notify,
    answered: impl Fn(),
) -> TunnelEnd {
    loop {
        let _ = timeout(settings.ping_interval, doubt.notified()).await;
        match timeout(settings.ping_timeout, pings.ping()).await {
            Ok(Ok(())) => answered(),
            // Whoever drives it knows why it has ended.
            Ok(Err(())) => return std::future::pending().await,
            Err(_) => return TunnelEnd::Silent,
        }
    }
}

/// Returns when the peer is not to be trusted any more. `revision` is the one from before it was verified.
pub(super) async fn distrust(
    trust: &Trust,
    mut revision: watch::Receiver<u64>,
    side: PeerSide,
    chain: &[CertificateDer<'_>],
) -> TunnelEnd {
    while revision.changed().await.is_ok() {
        if let Err(reason) = trust.still_trusted(side, chain) {
            return TunnelEnd::Distrusted(reason);
        }
    }
    std::future::pending().await
}

/// Returns when a tunnel has had no stream for `period`.
pub(super) async fn idle(state: &Rc<TunnelState>, period: Duration) {
    loop {
        if state.streams() > 0 {
            state.busy_changed().await;
            continue;
        }
        tokio::select! {
            biased;
            () = state.busy_changed() => {}
            () = sleep(period) => if state.streams() == 0 {
                return;
            }
        }
    }
}

/// A peer's certificates, to be kept.
pub(super) fn owned(chain: Option<&[CertificateDer<'_>]>) -> Vec<CertificateDer<'static>> {
    chain.unwrap_or_default().iter().map(|certificate| certificate.clone().into_owned()).collect()
}
