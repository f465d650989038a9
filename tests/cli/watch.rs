//! An outbox that is watched.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use lapin_idempotent::OutgoingMessage;
use sqlx::Postgres;
use tokio::{
    io::{AsyncBufReadExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    time::{Duration, sleep, timeout},
};

use super::{
    SOON,
    outbox::Filled,
    program::{Program, short, variable},
    secrets::{CANARY, with_user},
    terminal::Terminal,
};

trials! {
    a_terminal_is_drawn_anew_also_when_the_store_was_away,
    machines_get_a_line_a_look,
    no_password_is_on_the_screen,
}

const STATUS: [&str; 5] = ["outbox", "status", "--watch", "--every", "1s"];

/// A way to a server that can be closed.
struct Way {
    url: String,
    is_open: Arc<AtomicBool>,
}

impl Way {
    async fn to(url: &str) -> Self {
        let authority = url.split("://").nth(1).unwrap().split('/').next().unwrap();
        let server = authority.rsplit('@').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let url = url.replace(&server, &own);
        let is_open = Arc::new(AtomicBool::new(true));
        let open = Arc::clone(&is_open);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (server, open) = (server.clone(), Arc::clone(&open));
                tokio::spawn(async move {
                    let is_closed = async {
                        while open.load(Ordering::SeqCst) {
                            sleep(Duration::from_millis(5)).await;
                        }
                    };
                    let through = async {
                        let mut server = TcpStream::connect(server).await.unwrap();
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    };
                    tokio::select! { () = is_closed => {}, () = through => {} }
                });
            }
        });
        Self { url, is_open }
    }
}

async fn outbox(url: &str) -> (Program, Filled<Postgres>) {
    let table = short("ob");
    let program = Program::new().arg("--outbox-table").arg(&table);
    program.clone().env("STORE_URL", url).run("schema apply --outbox --yes").await.ok();
    (program, Filled::<Postgres>::open(url, &table).await)
}

fn message(n: u8) -> OutgoingMessage {
    OutgoingMessage::to("", "nowhere").idempotency_key(format!("m{n}")).body("x")
}

pub async fn a_terminal_is_drawn_anew_also_when_the_store_was_away() {
    let url = variable("POSTGRES_URL");
    let (program, filled) = outbox(&url).await;
    let way = Way::to(&url).await;
    for size in [(24, 80), (12, 40)] {
        let mut terminal = Terminal::start(&program.clone().env("STORE_URL", &way.url), size, &STATUS);
        let already = if size.0 == 24 { 0 } else { 2 };
        terminal.shows(&format!("waiting               {already}\n")).await;
        filled.enqueue("key", message(already)).await;
        terminal.shows(&format!("waiting               {}\n", already + 1)).await;
        way.is_open.store(false, Ordering::SeqCst);
        terminal.shows("away since").await;
        filled.enqueue("key", message(already + 1)).await;
        way.is_open.store(true, Ordering::SeqCst);
        terminal.shows(&format!("waiting               {}\n", already + 2)).await;
        terminal.shows("q quits").await;
        if already == 0 {
            terminal.press("q").await;
        } else {
            terminal.signal("-TERM");
        }
        terminal.ends(0).await;
    }
}

pub async fn machines_get_a_line_a_look() {
    let url = variable("POSTGRES_URL");
    let (program, filled) = outbox(&url).await;
    let way = Way::to(&url).await;
    let program = program.env("STORE_URL", &way.url);
    let mut child = program.start(&[&STATUS[..], &["--json"]].concat());
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let mut until = async |what: &str, is_it: fn(&serde_json::Value) -> bool| {
        let found = async {
            loop {
                let line = lines.next_line().await.expect("read").expect("it goes on");
                let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
                if is_it(&line) {
                    return;
                }
            }
        };
        timeout(SOON, found).await.unwrap_or_else(|_| panic!("{what}"));
    };
    until("empty", |look| look["waiting"] == 0 && look["growth_per_second"].is_null()).await;
    filled.enqueue("key", message(0)).await;
    until("grown", |look| look["waiting"] == 1 && look["growth_per_second"].as_f64() > Some(0.0)).await;
    way.is_open.store(false, Ordering::SeqCst);
    until("away", |look| look["error"].is_string()).await;
    way.is_open.store(true, Ordering::SeqCst);
    until("back", |look| look["waiting"] == 1).await;
    let pid = child.id().expect("it runs").to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    assert_eq!(Program::ended(child).await.code, 0);
    for wrong in ["outbox status --every 1s", "outbox status --watch --every 0s"] {
        let ran = program.run(wrong).await;
        assert_eq!(ran.code, 2, "{wrong}: {ran:?}");
    }
}

pub async fn no_password_is_on_the_screen() {
    for url in [
        with_user(&variable("POSTGRES_URL"), "nobody.there", CANARY),
        format!("postgres://u:{CANARY}@127.0.0.1:1/db?password={CANARY}"),
    ] {
        let mut terminal = Terminal::start(&Program::new().env("STORE_URL", &url), (24, 80), &STATUS);
        terminal.shows("away: ").await;
        terminal.press("q").await;
        let seen = String::from_utf8_lossy(&terminal.bytes()).into_owned();
        assert!(!seen.contains(CANARY), "{seen}");
        terminal.ends(0).await;
    }
}
