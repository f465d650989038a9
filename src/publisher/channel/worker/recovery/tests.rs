//! Why a channel ended, when everything on it fails together and in any order.

use std::sync::Weak;

use futures_util::future::BoxFuture;
use lapin::{
    ChannelState, ErrorKind,
    protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError},
};
use tokio::{sync::watch, time::sleep};

use super::*;
use crate::{
    amqp::ConnectOptions,
    publisher::{
        channel::{context::WorkerOptions, queue::JobReceiver},
        connection::SharedConnection,
        permits::InFlightPermits,
        status::Monitor,
        telemetry::AttemptHook,
    },
};

type Resolved = lapin::Result<Confirmation>;

fn worker() -> ChannelWorker {
    let permits = Arc::new(InFlightPermits::new(10, 1_000));
    let options = WorkerOptions {
        retry: RetryPolicy::default(),
        confirm_timeout: Duration::from_secs(10),
        mandatory: true,
        on_attempt: AttemptHook::default(),
    };
    let context = WorkerContext {
        options,
        monitor: Arc::new(Monitor::new(1, 1, Arc::clone(&permits))),
        permits,
        dispatcher: Weak::new(),
        closing: watch::channel(None).1,
    };
    let shared = SharedConnection::new(ConnectOptions::new(["amqp://localhost"]).unwrap(), None, 1);
    ChannelWorker::new(context, 0, Arc::new(shared), JobReceiver::closed())
}

/// What is published on a channel that is being closed.
fn closing() -> Resolved {
    Err(ErrorKind::InvalidChannelState(ChannelState::Closing, "basic.publish").into())
}

fn said(kind: impl Into<AMQPErrorKind>) -> Resolved {
    Err(ErrorKind::ProtocolError(AMQPError::new(kind.into(), "as it said".into())).into())
}

/// The broker closed the channel.
fn refusal() -> Resolved {
    said(AMQPSoftError::NOTFOUND)
}

/// The broker closed the connection.
fn hard() -> Resolved {
    said(AMQPHardError::INTERNALERROR)
}

fn end_of(results: Vec<Resolved>) -> End {
    let mut round = results.into_iter().enumerate().collect();
    worker().judge(&mut round, &mut Unconfirmed::default()).expect_err("an end")
}

fn code(end: &End) -> Option<u16> {
    match end {
        End::Refused(reply, _) => Some(reply.code),
        _ => None,
    }
}

#[test]
fn refusal_counts_wherever_it_stands_in_a_round() {
    for others in [closing, hard] {
        for place in 0..4 {
            let mut round: Vec<_> = (0..3).map(|_| others()).collect();
            round.insert(place, refusal());
            assert_eq!(code(&end_of(round)), Some(404), "at {place}");
        }
    }
    for lost in [closing, hard] {
        assert!(matches!(end_of(vec![lost(), closing()]), End::Lost(_)));
    }
}

/// Awaits what else was in flight, each of it with what it says after how long.
async fn reason(of: Vec<(u64, fn() -> Resolved)>) -> (End, bool) {
    let mut publishing: PublishSet<BoxFuture<'_, (usize, Resolved)>> = PublishSet::new();
    for (slot, (after, says)) in of.into_iter().enumerate() {
        publishing.push(Box::pin(async move {
            sleep(Duration::from_millis(after)).await;
            (slot, says())
        }));
    }
    let first = end_of(vec![closing()]);
    assert!(matches!(first, End::Lost(_)));
    let end =
        worker().find_reason(first, &mut Unconfirmed::default(), &mut publishing, &ReadySet::new()).await;
    (end, publishing.is_empty())
}

#[tokio::test]
async fn refusal_is_waited_for_that_comes_behind_what_it_caused() {
    let (end, _) = reason(vec![(0, closing), (10, hard), (10, closing), (100, refusal)]).await;
    assert_eq!(code(&end), Some(404));
}

#[tokio::test]
async fn channel_is_lost_when_nobody_says_why() {
    let (end, all) = reason(vec![(0, closing), (10, hard)]).await;
    assert!(matches!(end, End::Lost(_)) && all);
    let (end, all) = reason(vec![(0, closing), (3_600_000, refusal)]).await;
    assert!(matches!(end, End::Lost(_)) && !all, "not waited for without end");
}
