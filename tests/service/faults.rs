//! The broker dies, freezes, blocks and refuses while messages are in flight: every call is
//! answered, nothing confirmed is lost, and what was in flight is published again under its ID.

use std::time::Duration;

use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage, RetryPolicy,
    publisher::{PublishErrorKind, PublisherState},
};
use tokio::time::{sleep, timeout};

use super::support::{
    DEADLINE,
    amqp::Client,
    broker, eventually,
    load::{self, Load, drain},
    node::{Cluster, Node},
};

trials! {
    broker_killed_and_restarted_under_load,
    broker_stopped_for_30_seconds_and_continued,
    memory_alarm_set_and_cleared,
    queue_deleted_with_10000_in_flight,
    channel_closed_by_the_broker_fails_only_the_message_at_fault,
    connection_closed_by_the_operator,
    cluster_leader_killed_nothing_confirmed_is_lost,
}

const MESSAGES: usize = 20_000;

/// The numbers of messages that no load has.
const OTHERS: usize = usize::MAX - 10;

/// Longer than any fault here, so that only a hang can reach it.
const PATIENCE: Duration = Duration::from_secs(180);

fn patient() -> RetryPolicy {
    RetryPolicy::default().max_elapsed(Duration::from_secs(150))
}

async fn connect(url: &str) -> IdempotentPublisher {
    let builder = IdempotentPublisher::builder(url).max_in_flight(512).retry(patient());
    builder.connect().await.expect("connect")
}

pub async fn broker_killed_and_restarted_under_load() {
    let node = Node::start().await;
    let queue = Client::connect(node.url()).await.queue("killed").await;
    node.sync().await;
    let publisher = connect(node.url()).await;
    let load = Load::start(&publisher, &queue, MESSAGES);
    load.reaches(MESSAGES / 4).await;
    node.kill().await;
    node.start_again().await;
    let verdicts = load.verdicts(PATIENCE).await;
    verdicts.assert_all_published();
    verdicts.assert_kept(&drain(&Client::connect(node.url()).await, &queue).await);
    assert!(publisher.status().reconnects >= 1);
}

pub async fn broker_stopped_for_30_seconds_and_continued() {
    let node = Node::start().await;
    let queue = Client::connect(node.url()).await.queue("stopped").await;
    let publisher = connect(node.url()).await;
    let load = Load::start(&publisher, &queue, MESSAGES);
    load.reaches(MESSAGES / 4).await;
    node.pause().await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(publisher.status().state, PublisherState::Reconnecting);
    node.resume().await;
    let verdicts = load.verdicts(PATIENCE).await;
    verdicts.assert_all_published();
    assert!((1..=512).contains(&verdicts.retried()), "what was in flight, and nothing else");
    assert_eq!(verdicts.most_attempts(), 2, "once each");
    verdicts.assert_kept(&drain(&Client::connect(node.url()).await, &queue).await);
}

pub async fn memory_alarm_set_and_cleared() {
    let node = Node::start().await;
    let client = Client::connect(node.url()).await;
    let queue = client.queue("alarm").await;
    let publisher = connect(node.url()).await;
    let mut status = publisher.watch();
    // A publisher that has nothing to publish would not be blocked.
    let load = Load::endless(&publisher, &queue);
    load.reaches(MESSAGES / 4).await;
    node.memory_alarm(true).await;
    let blocked = status.wait_for(|status| status.state == PublisherState::Blocked);
    assert_eq!(timeout(DEADLINE, blocked).await.expect("in time").expect("watch").blocked, 1);
    load.end();

    // Another publisher's call under the alarm: answered at its deadline, and the message is not
    // out.
    let other = connect(node.url()).await;
    other
        .publish_idempotent(load::message(&queue, OTHERS).deadline(Duration::from_secs(1)))
        .await
        .unwrap_err();
    let waiting = load::message(&queue, OTHERS + 1).deadline(Duration::from_secs(1));
    let error = other.publish_idempotent(waiting).await.expect_err("blocked");
    assert_eq!(error.kind(), PublishErrorKind::TimedOut);
    assert!(!error.may_have_been_published(), "a blocked connection is not written to");

    // Closing under the alarm: back within its limit, with the messages.
    let in_flight = async |count| (other.status().in_flight == count).then_some(());
    eventually("only the first is out", async || in_flight(1).await).await;
    let pending = tokio::spawn({
        let (other, message) = (other.clone(), load::message(&queue, OTHERS + 2));
        async move { other.publish_idempotent(message).await }
    });
    eventually("another waits", async || in_flight(2).await).await;
    let closed =
        timeout(Duration::from_secs(20), other.close(Duration::from_secs(1))).await.expect("in time");
    let left = closed.expect_err("unconfirmed").into_messages();
    assert!(left.iter().any(|message| message.id().is_some_and(|id| id.as_str() == load::id(OTHERS + 2))));
    let error = pending.await.expect("join").expect_err("closed");
    assert_eq!(error.kind(), PublishErrorKind::Closed);

    node.memory_alarm(false).await;
    let verdicts = load.verdicts(PATIENCE).await;
    verdicts.assert_all_published();
    assert_eq!(publisher.status().reconnects, 0, "a blocked connection is not a lost one");
    verdicts.assert_kept(&drain(&client, &queue).await);
}

pub async fn queue_deleted_with_10000_in_flight() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("deleted").await;
    let policy = patient().retry_unroutable(true).max_attempts(1000);
    let builder = IdempotentPublisher::builder(broker()).max_in_flight(10_000).retry(policy);
    let publisher = builder.connect().await.expect("connect");
    let load = Load::start(&publisher, &queue, 40_000);
    load.reaches(20_000).await;
    client.delete(&queue).await;
    let mut status = publisher.watch();
    let returned = timeout(DEADLINE, status.wait_for(|status| status.returned > 0)).await;
    returned.expect("in time").expect("some are returned");
    client.declare(&queue).await;
    let verdicts = load.verdicts(PATIENCE).await;
    verdicts.assert_all_published();
    assert_eq!(publisher.status().reconnects, 0);
    // What was confirmed before went with the queue. What was returned was published again, once it
    // was there.
    let copies = drain(&client, &queue).await;
    for (n, receipt) in verdicts.0.iter().flatten().enumerate() {
        if receipt.attempts() > 1 {
            assert_eq!(copies.get(&load::id(n)).map(Vec::len), Some(1), "message {n}");
        }
    }
    client.delete(&queue).await;
}

/// A publish to a missing exchange makes the broker close its channel (404), with everything that
/// is in flight there.
pub async fn channel_closed_by_the_broker_fails_only_the_message_at_fault() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("channel-closed").await;
    let builder = IdempotentPublisher::builder(broker()).max_in_flight(512).channels_per_connection(4);
    let publisher = builder.retry(patient().max_attempts(5)).connect().await.expect("connect");
    let load = Load::start(&publisher, &queue, MESSAGES);
    for quarter in 1..4 {
        load.reaches(MESSAGES * quarter / 4).await;
        let message = OutgoingMessage::to("test.no-such-exchange", "k").body("x");
        let error = timeout(DEADLINE, publisher.publish_idempotent(message)).await.expect("no call hangs");
        let error = error.expect_err("there is no such exchange");
        assert_eq!(error.kind(), PublishErrorKind::Unroutable);
        let source = std::error::Error::source(&error).expect("the broker's words").to_string();
        assert!(source.contains("no exchange"), "{source}");
    }
    let verdicts = load.verdicts(PATIENCE).await;
    verdicts.assert_all_published();
    verdicts.assert_kept(&drain(&client, &queue).await);
    client.delete(&queue).await;
}

pub async fn connection_closed_by_the_operator() {
    let node = Node::start().await;
    let queue = Client::connect(node.url()).await.queue("operator").await;
    let publisher = connect(node.url()).await;
    let named = IdempotentPublisher::builder(node.url()).app_id("orders").connect().await.expect("connect");
    let connections = node.ctl(&["list_connections", "client_properties"]).await;
    assert!(connections.contains("orders"), "the operator sees who it is: {connections}");
    drop(named);
    // Many: the operator's tool takes a second to come up.
    let load = Load::start(&publisher, &queue, 4 * MESSAGES);
    load.reaches(MESSAGES / 4).await;
    node.close_connections("maintenance").await;
    let verdicts = load.verdicts(PATIENCE).await;
    verdicts.assert_all_published();
    assert!(verdicts.retried() <= 512, "only what was in flight");
    assert!(verdicts.most_attempts() <= 2, "once each");
    let status = publisher.status();
    assert_eq!((status.reconnects, status.state), (1, PublisherState::Connected));
    // The reason, or what the next publish on the closed channel was told: whichever the lane saw
    // first.
    assert!(status.last_error.is_some());
    verdicts.assert_kept(&drain(&Client::connect(node.url()).await, &queue).await);
}

/// Three nodes, a quorum queue, and its leader is killed: a majority has what was confirmed.
pub async fn cluster_leader_killed_nothing_confirmed_is_lost() {
    let cluster = Cluster::start(3).await;
    let queue = Client::connect(cluster.urls()[0]).await.quorum_queue("leader").await;
    let builder = IdempotentPublisher::builder_for_cluster(cluster.urls()).max_in_flight(512);
    let publisher = builder.connections(2).retry(patient()).connect().await.expect("connect");
    let load = Load::start(&publisher, &queue, MESSAGES);
    load.reaches(MESSAGES / 4).await;
    let leader = cluster.leader_of(&queue).await;
    cluster.nodes()[leader].kill().await;
    let verdicts = load.verdicts(PATIENCE).await;
    verdicts.assert_all_published();
    let survivor = cluster.urls()[(leader + 1) % 3];
    verdicts.assert_kept(&drain(&Client::connect(survivor).await, &queue).await);
}
