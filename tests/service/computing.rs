//! Handlers that compute, or block their threads.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use lapin_idempotent::{
    Guard, HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, Lease, MemoryStore,
    Outcome, Scope,
};

use super::{
    redelivery::delete,
    support::{
        DEADLINE,
        amqp::{Client, with_id},
        broker,
        consumer::Running,
        eventually,
    },
};

trials! {
    handlers_that_compute_do_so_side_by_side,
    handlers_that_compute_after_quick_ones_do_so_side_by_side,
    neighbour_of_a_handler_that_blocks_its_thread_keeps_its_lease,
}

/// Where two handlers meet that hold their threads meanwhile.
#[derive(Default)]
struct Meeting {
    waiting: Mutex<u32>,
    arrived: Condvar,
    met: AtomicU32,
}

impl Meeting {
    fn wait(&self, longest: Duration) {
        let mut waiting = self.waiting.lock().expect("waiting");
        *waiting += 1;
        self.arrived.notify_all();
        let (mut waiting, late) =
            self.arrived.wait_timeout_while(waiting, longest, |waiting| *waiting < 2).expect("waiting");
        if late.timed_out() {
            *waiting -= 1;
        } else {
            self.met.fetch_add(1, SeqCst);
        }
    }
}

struct Meets(Arc<Meeting>, Duration);

impl IdempotentHandler<MemoryStore> for Meets {
    async fn handle(&self, message: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        if message.body().as_ref() == b"meet" {
            self.0.wait(self.1);
        }
        Ok(())
    }
}

pub async fn handlers_that_compute_do_so_side_by_side() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("computing").await;
    for n in 0..2 {
        client.publish(&queue, b"meet", with_id(&format!("m{n}"))).await;
    }
    let meeting = Arc::new(Meeting::default());
    let builder = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100)).workers(2);
    let consumer = Running::start(builder, Meets(Arc::clone(&meeting), DEADLINE));
    consumer.decided(2).await;
    consumer.stop().await;
    assert_eq!(meeting.met.load(SeqCst), 2, "each held its thread, and waited for the other");
    delete(&client, &queue, &[]).await;
}

/// Quick handlers share a task; those that come after them need not be.
pub async fn handlers_that_compute_after_quick_ones_do_so_side_by_side() {
    const QUICK: usize = 200;
    const MEET: usize = 20;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("computing").await;
    for n in 0..QUICK {
        client.publish(&queue, b"quick", with_id(&format!("q{n}"))).await;
    }
    let meeting = Arc::new(Meeting::default());
    let builder = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(1000)).workers(2);
    let consumer = Running::start(builder, Meets(Arc::clone(&meeting), Duration::from_millis(200)));
    consumer.decided(QUICK).await;
    for n in 0..MEET {
        client.publish(&queue, b"meet", with_id(&format!("m{n}"))).await;
    }
    consumer.decided(QUICK + MEET).await;
    consumer.stop().await;
    assert!(meeting.met.load(SeqCst) > 0, "two held their threads at the same time");
    delete(&client, &queue, &[]).await;
}

const LEASE: Duration = Duration::from_secs(1);

/// One that blocks its thread, and one that only takes its time.
struct Neighbours(Arc<AtomicU32>);

impl IdempotentHandler<MemoryStore> for Neighbours {
    async fn handle(&self, message: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        if message.body().as_ref() == b"blocks" {
            std::thread::sleep(LEASE * 4);
        } else {
            self.0.fetch_add(1, SeqCst);
            tokio::time::sleep(LEASE * 3).await;
        }
        Ok(())
    }
}

/// Tries to handle the slow one in a thread of its own, until it is known; how it ended.
fn rival(store: MemoryStore, runs: &Arc<AtomicU32>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        eventually("the slow one is begun", async || (runs.load(SeqCst) == 1).then_some(())).await;
        let guard = Guard::new(store, Scope::new("ledger").expect("scope"));
        let copy = IncomingMessage::new("slow").with_message_id("slow");
        let handler = Neighbours(Arc::clone(runs));
        eventually("the slow one is known", async || match guard.process(&copy, &handler).await {
            Outcome::InProgress { .. } => None,
            outcome => Some(outcome),
        })
        .await
    })
}

pub async fn neighbour_of_a_handler_that_blocks_its_thread_keeps_its_lease() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("computing").await;
    for body in ["slow", "blocks"] {
        client.publish(&queue, body.as_bytes(), with_id(body)).await;
    }
    let runs = Arc::new(AtomicU32::new(0));
    let store = MemoryStore::new(100).lease(LEASE);
    let rival = {
        let (store, runs) = (store.clone(), Arc::clone(&runs));
        std::thread::spawn(move || rival(store, &runs))
    };
    let builder = IdempotentConsumer::builder(broker(), &queue, store).scope("ledger").workers(2);
    let consumer = Running::start(builder, Neighbours(Arc::clone(&runs)));
    assert_eq!(consumer.decided(2).await, ["processed", "processed"]);
    let rival = tokio::task::spawn_blocking(|| rival.join().expect("rival")).await.expect("rival");
    assert!(matches!(rival, Outcome::Duplicate { .. }), "{rival:?}");
    assert_eq!(runs.load(SeqCst), 1);
    consumer.stop().await;
    delete(&client, &queue, &[]).await;
}
