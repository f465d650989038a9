//! The example `outbox`, as a client and an operator see it.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use lapin_idempotent::{IdStrategy, OutgoingMessage};
use serde_json::{Value, json};
use sqlx::SqlitePool;

use super::{
    database::short,
    examples::Example,
    support::{
        amqp::Client,
        broker, eventually,
        proxy::{Action, From, Proxy, method},
        unique,
    },
};

trials! {
    orders_that_were_placed_are_announced_and_no_others,
    shop_that_is_stopped_or_killed_announces_every_order,
}

/// The service on a file of its own.
struct Shop {
    queue: String,
    database: String,
    http: reqwest::Client,
}

impl Shop {
    fn new() -> Self {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("shop"));
        let database = format!("sqlite:{}", file.display());
        Self { queue: unique("orders"), database, http: reqwest::Client::new() }
    }

    async fn open(&self, amqp: &str) -> (Example, String) {
        let arguments = ["--queue", &self.queue, "--database", &self.database, "--listen", "127.0.0.1:0"];
        let example = Example::start("outbox", &arguments, &[("AMQP_URL", amqp)]);
        let address = example.address().await;
        (example, address)
    }

    /// The answer to an order; `None` if there was none.
    async fn order(&self, address: &str, body: String) -> Option<u16> {
        let url = format!("http://{address}/orders");
        let request = self.http.post(url).header("content-type", "application/json").body(body);
        request.send().await.ok().map(|response| response.status().as_u16())
    }

    async fn place(&self, address: &str, order: &str) -> Option<u16> {
        self.order(address, json!({ "id": order, "amount": 500 }).to_string()).await
    }

    async fn probe(&self, address: &str, path: &str) -> (u16, String) {
        let response = self.http.get(format!("http://{address}{path}")).send().await.expect("answer");
        (response.status().as_u16(), response.text().await.expect("text"))
    }

    /// What was written down, whatever was answered.
    async fn orders(&self) -> BTreeSet<String> {
        let pool = SqlitePool::connect(&self.database).await.expect("open");
        let orders = sqlx::query_scalar("SELECT id FROM orders").fetch_all(&pool).await.expect("orders");
        orders.into_iter().collect()
    }

    /// Until nothing is left to be announced.
    async fn announced(&self) {
        let pool = SqlitePool::connect(&self.database).await.expect("open");
        eventually("all is announced", async || {
            let left: i64 =
                sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&pool).await.expect("left");
            (left == 0).then_some(())
        })
        .await;
    }

    /// Takes all announcements out of the queue: the order of each, which has the ID of that order.
    async fn announcements(&self, client: &Client) -> Vec<String> {
        let mut orders = Vec::new();
        while let Some(message) = client.get(&self.queue).await {
            let body: Value = serde_json::from_slice(&message.data).expect("JSON");
            let order = body["id"].as_str().expect("an order").to_owned();
            let keyed = OutgoingMessage::to("", &self.queue).idempotency_key_parts(["placed", &order]);
            let id = IdStrategy::default().message_id(&keyed).expect("ID");
            let properties = &message.properties;
            assert_eq!(properties.message_id().as_ref().map(|id| id.as_str()), Some(id.as_str()));
            assert_eq!(properties.kind().as_ref().map(|kind| kind.as_str()), Some("order.placed"));
            orders.push(order);
        }
        client.delete(&self.queue).await;
        orders
    }
}

pub async fn orders_that_were_placed_are_announced_and_no_others() {
    let (client, shop) = (Client::connect(&broker()).await, Shop::new());
    let (example, address) = shop.open(&broker()).await;
    let at = address.as_str();
    let placed: BTreeSet<String> = (0..50).map(|n| format!("order-{n}")).collect();
    let answers = join_all(placed.iter().map(|order| shop.place(at, order))).await;
    assert_eq!(answers, [Some(201); 50]);
    assert_eq!(shop.place(at, "order-7").await, Some(409), "once");
    let long = "o".repeat(256);
    for bad in [
        "no json".to_owned(),
        json!({ "id": "a" }).to_string(),
        // Written down, and then refused as an order key: all of it is taken back.
        json!({ "id": "", "amount": 1 }).to_string(),
        json!({ "id": long, "amount": 1 }).to_string(),
    ] {
        assert_eq!(shop.order(at, bad.clone()).await, Some(400), "{bad}");
    }
    shop.announced().await;
    assert_eq!(shop.orders().await, placed);
    assert_eq!(shop.probe(at, "/healthz").await, (200, "relay relaying\n".to_owned()));
    assert_eq!(shop.probe(at, "/readyz").await.0, 200);
    example.stop().await;
    let announced = shop.announcements(&client).await;
    assert_eq!((announced.len(), announced.into_iter().collect()), (50, placed));
}

/// Orders are taken without a broker, beside one that confirms nothing, and while the service
/// stops; and the last run announces what those before it did not.
pub async fn shop_that_is_stopped_or_killed_announces_every_order() {
    let (client, shop) = (Client::connect(&broker()).await, Shop::new());
    let (mut answered, mut next) = (BTreeSet::new(), 0);
    let mut orders = move |count: usize| {
        next += count;
        (next - count..next).map(|n| format!("order-{n}")).collect::<Vec<_>>()
    };

    // Nobody listens there.
    let (example, address) = shop.open("amqp://127.0.0.1:1").await;
    for order in orders(20) {
        assert_eq!(shop.place(&address, &order).await, Some(201), "without a broker");
        answered.insert(order);
    }
    eventually("it says what waits", async || {
        let (code, text) = shop.probe(&address, "/readyz").await;
        (code == 200 && text.starts_with("20 to be published")).then_some(())
    })
    .await;
    example.stop().await;

    let proxy = Proxy::start(&broker()).await;
    let published = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&published);
    proxy.rule(move |frame| {
        if frame.is(From::Client, method::BASIC_PUBLISH) {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        if frame.is(From::Broker, method::BASIC_ACK) { Action::Drop } else { Action::Pass }
    });
    let (mut example, address) = shop.open(proxy.url()).await;
    for order in orders(20) {
        assert_eq!(shop.place(&address, &order).await, Some(201), "beside a broker that is silent");
        answered.insert(order);
    }
    eventually("some are on their way", async || (published.load(Ordering::SeqCst) > 20).then_some(())).await;
    example.process.kill().await.expect("killed");

    let (example, address) = shop.open(&broker()).await;
    let (at, taken) = (address.as_str(), AtomicUsize::new(0));
    let placing = join_all(orders(400).into_iter().map(async |order| {
        let answer = shop.place(at, &order).await;
        taken.fetch_add(usize::from(answer == Some(201)), Ordering::SeqCst);
        (answer == Some(201)).then_some(order)
    }));
    let stopping = async {
        eventually("some are placed", async || (taken.load(Ordering::SeqCst) > 50).then_some(())).await;
        example.stop().await;
    };
    answered.extend(tokio::join!(placing, stopping).0.into_iter().flatten());

    let (example, _) = shop.open(&broker()).await;
    shop.announced().await;
    example.stop().await;
    let placed = shop.orders().await;
    assert!(placed.is_superset(&answered), "what was answered is there");
    let announced = shop.announcements(&client).await;
    assert!(announced.len() > placed.len(), "what the broker did not confirm comes again");
    assert_eq!(announced.into_iter().collect::<BTreeSet<_>>(), placed);
}
