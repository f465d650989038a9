//! The examples that run until they are stopped, as a user runs them: as processes, on a real
//! broker and database.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    time::timeout,
};

use super::{
    database::{Kind, short},
    support::{
        DEADLINE,
        amqp::{Client, header, with_id},
        broker, eventually,
    },
};

trials! {
    transactional_books_each_message_once,
    leased_http_uses_one_key_for_one_charge,
    service_publishes_and_books_and_stops_gracefully,
}

/// An example that runs, and what it has printed.
pub struct Example {
    pub process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Example {
    pub fn start(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let tests = std::env::current_exe().expect("exe");
        let target = tests.parent().and_then(Path::parent).expect("target");
        let mut process = Command::new(target.join("examples").join(name))
            .args(arguments)
            .env("AMQP_URL", broker())
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`cargo build --all-features --examples` was run");
        let mut output = BufReader::new(process.stdout.take().expect("stdout")).lines();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&lines);
        tokio::spawn(async move {
            while let Some(line) = output.next_line().await.expect("text") {
                said.lock().expect("lines").push(line);
            }
        });
        Self { process, lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("lines").clone()
    }

    /// Where it listens.
    pub async fn address(&self) -> String {
        eventually("it listens", async || {
            self.lines().iter().find_map(|line| line.strip_prefix("listening on ").map(str::to_owned))
        })
        .await
    }

    async fn says(&self, count: usize, end: &str) {
        let ends = || self.lines().iter().filter(|line| line.ends_with(end)).count();
        eventually(&format!("{count} times {end}"), async || (ends() >= count).then_some(())).await;
    }

    /// It ends well when it is asked to.
    pub async fn stop(mut self) {
        let pid = self.process.id().expect("it runs").to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        let status = timeout(DEADLINE, self.process.wait()).await.expect("in time").expect("wait");
        assert_eq!(status.code(), Some(0));
    }
}

/// A schema of its own: the examples have fixed names for their tables.
async fn schema() -> (String, PgPool) {
    let (url, name) = (<sqlx::Postgres as Kind>::url(), short("example"));
    let pool = PgPool::connect(&url).await.expect("connect");
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {name}"))).execute(&pool).await.expect("schema");
    let url = format!("{url}?options=-c%20search_path%3D{name}");
    let pool = PgPool::connect(&url).await.expect("connect");
    (url, pool)
}

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("number")
}

async fn delete(client: &Client, queue: &str) {
    assert_eq!(client.ready(queue).await, 0);
    client.delete(queue).await;
    client.delete(&format!("{queue}.parked")).await;
}

pub async fn transactional_books_each_message_once() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("transactional").await;
    for n in (0..200).chain(0..100) {
        let body = json!({ "account": format!("A{}", n % 7), "amount": 10 }).to_string();
        client.publish(&queue, body.as_bytes(), with_id(&format!("order-{n}"))).await;
    }
    client.publish(&queue, b"{}", with_id("broken")).await;
    let (url, pool) = schema().await;
    let example = Example::start("transactional", &[], &[("POSTGRES_URL", &url), ("QUEUE", &queue)]);
    example.says(200, " processed").await;
    example.says(100, " duplicate").await;
    example.says(1, "broken reject").await;
    example.stop().await;
    assert_eq!(number(&pool, "SELECT count(*) FROM ledger").await, 200);
    assert_eq!(number(&pool, "SELECT count(DISTINCT message_id) FROM ledger").await, 200);
    assert_eq!(number(&pool, "SELECT -sum(balance)::bigint FROM account").await, 2000);
    delete(&client, &queue).await;
}

/// What the payment API saw: for each body, the keys of its calls.
type Calls = Arc<Mutex<HashMap<String, Vec<String>>>>;

/// Fails at the first call for each charge, and refuses one of them for good.
async fn api() -> (String, Calls) {
    async fn charge(State(calls): State<Calls>, headers: HeaderMap, body: String) -> StatusCode {
        let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
        let mut calls = calls.lock().expect("calls");
        let keys = calls.entry(body.clone()).or_default();
        keys.push(key.to_owned());
        match keys.len() {
            _ if body.contains("stolen") => StatusCode::FORBIDDEN,
            1 => StatusCode::BAD_GATEWAY,
            _ => StatusCode::CREATED,
        }
    }
    let calls = Calls::default();
    let router = Router::new().route("/charges", post(charge)).with_state(Arc::clone(&calls));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}/charges", listener.local_addr().expect("address"));
    tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
    (url, calls)
}

pub async fn leased_http_uses_one_key_for_one_charge() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("leased-http").await;
    for card in ["1", "2", "3", "1", "stolen"] {
        let body = json!({ "card": card }).to_string();
        client.publish(&queue, body.as_bytes(), with_id(&format!("charge-{card}"))).await;
    }
    let ((url, _), (api, calls)) = (schema().await, api().await);
    let variables = [("POSTGRES_URL", url.as_str()), ("QUEUE", &queue), ("API_URL", &api)];
    let example = Example::start("leased_http", &[], &variables);
    example.says(3, " processed").await;
    example.says(1, " duplicate").await;
    example.says(1, "charge-stolen reject").await;
    let parking = format!("{queue}.parked");
    eventually("it is parked", async || (client.ready(&parking).await == 1).then_some(())).await;
    example.stop().await;
    let calls = calls.lock().expect("calls").clone();
    let mut keys: Vec<&String> = calls.values().map(|keys| &keys[0]).collect();
    assert!(calls.values().all(|keys| keys.iter().all(|key| *key == keys[0])), "{calls:?}");
    assert!(calls.iter().all(|(body, keys)| body.contains("stolen") || keys.len() == 2), "{calls:?}");
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 4, "another key for another charge: {calls:?}");
    let parked = client.get(&parking).await.expect("parked");
    let error = header(&parked, "x-idempotency-parked-error").expect("error");
    assert!(error.contains("403"), "{error}");
    delete(&client, &queue).await;
}

pub async fn service_publishes_and_books_and_stops_gracefully() {
    let client = Client::connect(&broker()).await;
    // The service declares it.
    let queue = super::support::unique("service");
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("service"));
    let database = format!("sqlite:{}", file.display());
    let arguments = ["--queue", &queue, "--database", &database, "--listen", "127.0.0.1:0"];
    let example = Example::start("service", &arguments, &[]);
    let address = example.address().await;
    let http = reqwest::Client::new();
    let get = async |path: &str| {
        let response = http.get(format!("http://{address}{path}")).send().await.expect("answer");
        (response.status().as_u16(), response.text().await.expect("text"))
    };
    eventually("it is ready", async || (get("/readyz").await.0 == 200).then_some(())).await;
    assert_eq!(get("/healthz").await, (200, "consuming".to_owned()));
    let debit = async |body: String, key: Option<&str>| {
        let request =
            http.post(format!("http://{address}/debits")).header("content-type", "application/json");
        let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        let response = request.body(body).send().await.expect("answer");
        (response.status().as_u16(), response.json::<Value>().await.unwrap_or_default())
    };
    let order = |number: &str| json!({ "order": number, "account": "A", "amount": 500 }).to_string();
    let (one, same, keyed) =
        tokio::join!(debit(order("42"), None), debit(order("42"), None), debit(order("43"), Some("k")));
    assert_eq!((one.0, same.0, keyed.0), (202, 202, 202));
    assert_eq!(one.1["message_id"], same.1["message_id"], "one order, one message");
    assert_ne!(one.1["message_id"], keyed.1["message_id"]);
    for (body, key) in [("{}".to_owned(), None), ("no json".to_owned(), None), (order("44"), Some("k\u{e9}"))]
    {
        assert_eq!(debit(body, key).await.0, 400);
    }
    let pool = SqlitePool::connect(&database).await.expect("open");
    let rows = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM ledger").fetch_one(&pool).await.expect("rows")
    };
    eventually("both are booked", async || (rows().await == 2).then_some(())).await;
    let absorbed = "idempotent_consumer_deliveries_total{scope=\"ledger\",outcome=\"duplicate\",cause=\"republished\"} 1";
    eventually("the duplicate is counted", async || get("/metrics").await.1.contains(absorbed).then_some(()))
        .await;
    assert!(get("/metrics").await.1.contains("idempotent_publisher_"));
    example.stop().await;
    assert_eq!(rows().await, 2);
    delete(&client, &queue).await;
}
