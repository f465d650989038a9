//! A thousand debits, delivered with duplicates, over cut connections, by consumers that come and
//! go. Every balance is right.
//!
//! ```text
//! make demo                               1,000 made-up orders
//! make demo ARGS=orders.jsonl             your own: {"id": "order-1", "account": "A", "amount": 500} a line
//! make demo ARGS=--without-guard          the same without the guard: see the double debits
//! ```
//!
//! The three causes of duplicates are provoked for real, by proxies that read the AMQP frames
//! (`faults.rs`): at sending, the publisher's connection is cut before its confirms arrive; at
//! delivery, a consumer's connection is cut between its commits and its acks; at rebalancing, a
//! second consumer joins and the first is killed half-way.
//!
//! Then a shop that writes orders down and announces them is killed between the two, without an
//! outbox and with one (`shop.rs`).

mod bank;
mod faults;
#[path = "../../tests/support/proxy.rs"]
#[allow(dead_code, unreachable_pub, missing_debug_implementations, clippy::expect_used)]
mod proxy;
mod report;
mod shop;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use lapin_idempotent::{
    BoxError, IdempotentConsumer, IdempotentPublisher, OutgoingMessage,
    idempotency::{KeySource, MissingIdPolicy},
};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tracing_subscriber::EnvFilter;

use bank::{Bank, Debit, Order};
use report::{Report, Tally};

#[derive(Parser)]
#[command(about = "A thousand debits with duplicates and crashes, and every balance right")]
struct Args {
    /// A JSON-lines file with an order a line: {"id": "...", "account": "...", "amount": ...}
    orders: Option<PathBuf>,
    /// How many orders to make up when no file is given
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Let every delivery take effect, to see what the guard is for
    #[arg(long)]
    without_guard: bool,
    /// The broker
    #[arg(long, env = "AMQP_URL", default_value = "amqp://localhost", hide_env_values = true)]
    amqp: String,
    #[command(flatten)]
    shop: shop::Shop,
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    // RUST_LOG=lapin_idempotent=debug shows what goes on behind the bars.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let args = Args::parse();
    let orders = match &args.orders {
        Some(file) => bank::read_orders(file)?,
        None => bank::made_up_orders(args.count),
    };
    if args.shop.run(&args.amqp, &orders).await? {
        return Ok(ExitCode::SUCCESS);
    }
    let bank = Bank::open(&orders).await?;
    let queue = faults::Queue::declare(&args.amqp).await?;

    let attempts = publish(&args.amqp, &queue.name, &orders).await?;
    let copies = queue.depth().await?;
    let tally = consume(&args, &queue.name, &bank, orders.len()).await?;
    queue.delete().await?;

    let report = Report { orders: orders.len(), attempts, copies, tally, books: bank.books(&orders).await? };
    println!("{report}");

    println!("\n  a shop that is killed between its commit and its publish\n");
    println!("{}", shop::killed(&args.amqp, args.count, false).await?);
    let announced = shop::killed(&args.amqp, args.count, true).await?;
    println!("{announced}");
    let good = report.books.accounts_off == 0 && announced.all();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Publishes all orders; the connection is cut twice while confirms are outstanding.
async fn publish(amqp: &str, queue: &str, orders: &[Order]) -> Result<u32, BoxError> {
    let proxy = proxy::Proxy::start(amqp).await;
    faults::lose_confirms(&proxy, orders.len());
    let publisher = IdempotentPublisher::builder(proxy.url())
        .app_id("payments demo")
        .max_in_flight(100)
        .connect()
        .await?;
    let messages = orders
        .iter()
        .map(|order| {
            OutgoingMessage::to("", queue).idempotency_key(format!("debit/{}", order.id)).json(order)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let bar = bar("published", orders.len());
    let mut receipts = publisher.publish_all(messages);
    let mut attempts = 0;
    while let Some(receipt) = receipts.next().await {
        attempts += receipt?.attempts();
        bar.inc(1);
    }
    bar.finish();
    Ok(attempts)
}

/// Lets two consumers work the queue off: the first loses acks and is killed half-way, the second
/// takes over.
async fn consume(args: &Args, queue: &str, bank: &Bank, orders: usize) -> Result<Arc<Tally>, BoxError> {
    let tally = Arc::new(Tally::default());
    let bar = bar("handled", orders);
    let proxy = proxy::Proxy::start(&args.amqp).await;
    faults::lose_acks(&proxy);

    let (first, _keep_running) = start(args, proxy.url(), queue, bank, &tally);
    wait_for(bank, &bar, orders / 2).await?;
    let (second, stop) = start(args, &args.amqp, queue, bank, &tally);
    wait_for(bank, &bar, orders * 6 / 10).await?;
    // Killed, not stopped: what it had in hand, and the acks on their way, are lost.
    first.abort();
    proxy.cut_all();
    wait_for(bank, &bar, orders).await?;
    // Whatever copies are still in the queue must come to nothing.
    while faults::depth(&args.amqp, queue).await? > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    drop(stop);
    second.await??;
    bar.finish();
    Ok(tally)
}

type Running = JoinHandle<Result<(), lapin_idempotent::consumer::ConsumeError>>;

fn start(
    args: &Args,
    amqp: &str,
    queue: &str,
    bank: &Bank,
    tally: &Arc<Tally>,
) -> (Running, oneshot::Sender<()>) {
    let (stop, stopped) = oneshot::channel();
    let mut consumer =
        IdempotentConsumer::builder(amqp, queue, bank.store.clone()).scope("ledger").prefetch(50);
    if args.without_guard {
        // No delivery has an ID, and every delivery is handled.
        consumer =
            consumer.key(KeySource::from_fn(|_| Ok(None))).missing_id(MissingIdPolicy::HandleUnguarded);
    }
    let counted = Arc::clone(tally);
    let consumer = consumer.on_outcome(move |_, outcome| counted.count(outcome));
    let shutdown = async { stopped.await.unwrap_or_default() };
    (tokio::spawn(consumer.run_until(Debit, shutdown)), stop)
}

async fn wait_for(bank: &Bank, bar: &ProgressBar, target: usize) -> Result<(), BoxError> {
    let (mut handled, mut changed) = (0, Instant::now());
    while handled < target {
        sleep(Duration::from_millis(20)).await;
        let now = bank.handled().await?;
        if now > handled {
            (handled, changed) = (now, Instant::now());
            bar.set_position(handled as u64);
        } else if changed.elapsed() > Duration::from_secs(60) {
            return Err(format!("no progress for a minute, at {handled} of {target} orders").into());
        }
    }
    Ok(())
}

fn bar(what: &'static str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>10} {bar:40.green} {pos}/{len} {elapsed}");
    ProgressBar::new(length as u64)
        .with_message(what)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
