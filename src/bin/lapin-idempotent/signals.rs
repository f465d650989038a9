//! Being told to end.

use std::future::Future;

/// Until the program is told to end, from now on and not from when this is awaited. With
/// `terminal`, the loss of it counts too.
#[cfg(unix)]
pub(crate) fn interrupted(terminal: bool) -> impl Future<Output = ()> + Send {
    use std::task::Poll;

    use tokio::signal::unix::{SignalKind, signal};

    let hangup = terminal.then_some(SignalKind::hangup());
    let kinds = [SignalKind::interrupt(), SignalKind::terminate()].into_iter().chain(hangup);
    let mut signals: Vec<_> = kinds.filter_map(|kind| signal(kind).ok()).collect();
    std::future::poll_fn(move |context| {
        if signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
}

/// Until the program is told to end.
#[cfg(not(unix))]
pub(crate) async fn interrupted(_terminal: bool) {
    let _ = tokio::signal::ctrl_c().await;
}
