//! The doctor finds what will bite.

use lapin_idempotent::consumer::WorkQueue;
use sqlx::Postgres;

use super::{
    on,
    program::{Program, Ran, short, variable},
    support::{amqp::Client, broker, node::Node, unique},
};

trials! {
    a_queue_is_looked_at_and_never_declared,
    what_is_wrong_with_a_store_is_told,
    nothing_to_look_at_is_wrong_usage,
    missing_rights_are_told,
}

fn lines<'a>(ran: &'a Ran, level: &str) -> Vec<&'a str> {
    ran.out.lines().filter(|line| line.starts_with(level)).collect()
}

pub async fn a_queue_is_looked_at_and_never_declared() {
    let program = Program::new().env("AMQP_URL", broker());
    let client = Client::connect(&broker()).await;
    let queue = unique("doctor");
    let doctor = format!("doctor --queue {queue}");
    for _ in 0..2 {
        let ran = program.run(&doctor).await;
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(lines(&ran, "fail")[0].contains("is not there"), "nothing was declared: {ran:?}");
    }
    WorkQueue::new(broker(), &queue).declare().await.expect("declare");
    let ran = program.run(&doctor).await.ok();
    assert!(ran.out.contains("broker's clock and this host's are in step"), "{ran:?}");
    assert!(ran.out.contains("as recommended") && ran.out.contains("RabbitMQ"), "{ran:?}");
    client.publish(&format!("{queue}.parked"), b"x", lapin::BasicProperties::default()).await;
    let ran = program.run(&doctor).await;
    assert!(ran.code == 3 && lines(&ran, "warn")[0].contains("1 messages are parked"), "{ran:?}");
    let classic = client.queue("doctor-classic").await;
    let ran = program.run(&format!("doctor --queue {classic}")).await;
    assert!(ran.code == 3 && ran.out.contains("x-queue-type is classic"), "{ran:?}");
    for queue in [classic, format!("{queue}.parked"), queue] {
        client.delete(&queue).await;
    }
}

pub async fn what_is_wrong_with_a_store_is_told() {
    let (program, ..) = on::<Postgres>();
    let program = program.arg("--outbox-table").arg(short("ob"));
    let ran = program.run("doctor --outbox --retention 1d --horizon 2d").await;
    assert_eq!((ran.code, lines(&ran, "fail").len()), (3, 3), "{ran:?}");
    program.run("schema apply --identities --outbox --yes").await.ok();
    let ran = program.run("doctor --outbox --retention 3d --horizon 2d").await.ok();
    assert!(ran.out.contains("in step"), "{ran:?}");
    let away = Program::new().env("STORE_URL", "postgres://u:p@127.0.0.1:1/db");
    let ran = away.run("doctor").await;
    assert!(ran.code == 3 && lines(&ran, "fail").len() == 1, "{ran:?}");
    let ran = Program::new().env("AMQP_URL", "amqp://127.0.0.1:1").run("doctor").await;
    assert!(ran.code == 3 && lines(&ran, "fail").len() == 1, "{ran:?}");
}

pub async fn nothing_to_look_at_is_wrong_usage() {
    let ran = Program::new().run("doctor").await;
    assert!(ran.code == 2 && ran.err.contains("STORE_URL"), "{ran:?}");
    let ran = Program::new().env("STORE_URL", variable("REDIS_URL")).run("doctor --queue q").await;
    assert!(ran.code == 2 && ran.err.contains("AMQP_URL"), "{ran:?}");
}

pub async fn missing_rights_are_told() {
    let (node, user) = (Node::start().await, "consumer");
    node.ctl(&["add_user", user, "canary"]).await;
    let url = node.url().replace("guest:guest@", &format!("{user}:canary@"));
    let (queue, program) = (unique("rights"), Program::new().env("AMQP_URL", &url));
    let doctor = format!("doctor --queue {queue}");
    let of = |ran: &Ran, what: &str| {
        let line =
            ran.out.lines().find(|line| line.contains(&format!("{what}: "))).expect("a line").to_owned();
        line.split(' ').next().map(ToOwned::to_owned)
    };
    let found = |ran: &Ran| (of(ran, "parking"), of(ran, "delays"));
    let levels = |parking: &str, delays: &str| (Some(parking.to_owned()), Some(delays.to_owned()));
    for (configure, write, parking, delays) in [
        ("^$", ".*", "fail", "fail"),
        (r"\.parked$", ".*", "ok", "fail"),
        (r"\.retry\.", ".*", "fail", "ok"),
        // A delay queue gives back by the default exchange.
        (".*", "^$", "ok", "fail"),
    ] {
        node.ctl(&["set_permissions", user, configure, write, ".*"]).await;
        let ran = program.run(&doctor).await;
        assert_eq!((ran.code, found(&ran)), (3, levels(parking, delays)), "{configure} {write}: {ran:?}");
        assert!(ran.out.contains("broker's clock could not be read"), "{ran:?}");
    }
    // A queue that somebody else declares.
    WorkQueue::new(node.url(), &queue).declare().await.expect("declare");
    node.ctl(&["set_permissions", user, r"\.retry\.", ".*", ".*"]).await;
    let ran = program.run(&doctor).await;
    assert_eq!(found(&ran), levels("ok", "ok"), "{ran:?}");
    assert!(lines(&ran, "fail").is_empty() && ran.out.contains("could be compared"), "{ran:?}");
    node.ctl(&["set_permissions", user, ".*", ".*", ".*"]).await;
    program.run(&doctor).await.ok();
}
