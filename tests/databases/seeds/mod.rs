//! Random faults at sending, at delivery and at rebalancing: effects are exactly the messages. The
//! same run without the guard shows what the faults are worth.

mod crew;
mod plan;

use std::time::Duration;

use lapin_idempotent::{IdempotentPublisher, RetryPolicy};
use libtest_mimic::Trial;
use sqlx::Postgres;

use self::{
    crew::Crew,
    plan::{MESSAGES, Plan},
};
use super::{
    consuming::{self, assert_one_effect_each},
    database::{Kind, Table, short},
    support::{
        amqp::Client,
        eventually,
        load::{self, Load},
        node::Node,
        proxy::{Action, From, Proxy, method},
        trials::trial,
    },
};

const TESTS: u64 = 4;
const SEEDS: u64 = 10;

/// Longer than any fault here, so that only a hang can reach it.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn trials(there: bool) -> Vec<Trial> {
    let test = |first: u64| {
        let seeds = first..first + SEEDS;
        let name = format!("seeds::{first}_to_{}", seeds.end - 1);
        trial(&name, move || effects_are_exactly_the_messages(seeds), there)
    };
    (0..TESTS).map(|n| test(n * SEEDS)).collect()
}

async fn effects_are_exactly_the_messages(seeds: impl Iterator<Item = u64>) {
    let node = Node::start().await;
    for plan in seeds.map(Plan::of) {
        let (effects, messages) = if plan.kills_broker() {
            run(&plan, &node, true).await;
            run(&plan, &node, false).await
        } else {
            tokio::join!(run(&plan, &node, true), run(&plan, &node, false)).1
        };
        assert!(effects > messages, "void: there is no second effect without the guard either");
    }
}

/// Publishes and consumes all messages while faults happen: how many effects there are, and of how
/// many messages.
async fn run(plan: &Plan, node: &Node, guarded: bool) -> (i64, i64) {
    let queue = Client::connect(node.url()).await.queue("seeds").await;
    if plan.kills_broker() {
        node.sync().await;
    }
    // The worker creates the tables.
    let table = Table::<Postgres>::open(&Postgres::url(), &short("ids"), &short("eff")).await;
    let mut arguments = vec!["--queue", &queue, "--table", &table.name, "--effects-table", &table.effects];
    arguments.extend(["--store", &table.url, "--scope", "test"]);
    arguments.extend(["--batch", "16", "--workers", "2", "--prefetch", "64"]);
    if !guarded {
        arguments.push("--without-guard");
    }
    let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
    let mut crew = Crew::start(node, &arguments).await;

    let proxy = Proxy::start(node.url()).await;
    lose_confirms(&proxy, plan.lost_confirms.clone());
    let patient = RetryPolicy::default().max_elapsed(PATIENCE).max_attempts(1000);
    let publisher = IdempotentPublisher::builder(proxy.url()).retry(patient).max_in_flight(100);
    let publisher = publisher.connect().await.expect("connect");
    let load = Load::start(&publisher, &queue, MESSAGES);
    for (after, fault) in &plan.faults {
        crew.decides(*after).await;
        crew.suffer(*fault).await;
    }
    let published = load.verdicts(PATIENCE).await;
    published.assert_all_published();
    assert!(published.retried() > 0, "confirms were lost");

    let messages = i64::try_from(MESSAGES).expect("few");
    eventually("all take effect", || {
        crew.supervise();
        async { (table.effects().await.1 == messages).then_some(()) }
    })
    .await;
    crew.stop().await;
    let client = Client::connect(node.url()).await;
    if guarded {
        assert_one_effect_each(messages, &table, (&client, node.url(), &queue), Vec::new()).await;
        let mut expected: Vec<_> = (0..MESSAGES).map(load::id).collect();
        expected.sort_unstable();
        let mut effects = consuming::effects(&table).await;
        effects.sort_unstable();
        assert_eq!(effects, expected);
    }
    client.delete(&queue).await;
    table.effects().await
}

/// After so many messages, each in its turn, the connection is cut before the next confirm: what it
/// would confirm is in the queue.
fn lose_confirms(proxy: &Proxy, after: Vec<usize>) {
    let (mut sent, mut lost) = (0, 0);
    proxy.rule(move |frame| {
        if frame.is(From::Client, method::BASIC_PUBLISH) {
            sent += 1;
        }
        let due = after.get(lost).is_some_and(|after| sent >= *after);
        if !due || !frame.is(From::Broker, method::BASIC_ACK) {
            return Action::Pass;
        }
        lost += 1;
        Action::CutBefore
    });
}
