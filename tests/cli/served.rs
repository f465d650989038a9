//! The web page's program, running, and what it says meanwhile.

use std::sync::{Arc, Mutex};

use reqwest::{Client, Method, RequestBuilder, Response, redirect::Policy};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Child,
};
use url::form_urlencoded::Serializer;

use super::{
    program::Program,
    support::{broker, eventually},
};

pub struct Served {
    pub child: Child,
    /// Such as `http://127.0.0.1:4711`.
    pub url: String,
    /// What it made up, unless it was given one.
    pub token: String,
    log: Arc<Mutex<String>>,
    http: Client,
}

/// A new token that a test knows.
pub fn token() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

impl Served {
    pub async fn start(queue: &str) -> Self {
        Self::of(&Program::new().env("AMQP_URL", broker()), &["serve", queue]).await
    }

    pub async fn of(program: &Program, words: &[&str]) -> Self {
        let listen = ["--listen", "127.0.0.1:0"];
        let words: Vec<&str> =
            if words.contains(&"--listen") { words.to_vec() } else { [words, &listen].concat() };
        let mut child = program.start(&words);
        let log = Arc::new(Mutex::new(String::new()));
        tokio::spawn(kept(child.stdout.take().expect("stdout"), Arc::clone(&log)));
        tokio::spawn(kept(child.stderr.take().expect("stderr"), Arc::clone(&log)));
        let url = eventually("it serves", async || {
            let said = log.lock().unwrap().clone();
            assert!(!said.contains("error: "), "{said}");
            said.split_once("serving ")?.1.split_once("/ until").map(|(url, _)| url.to_owned())
        });
        let url = url.await.replace("0.0.0.0", "127.0.0.1");
        let http = Client::builder().redirect(Policy::none()).no_proxy().build().expect("client");
        let is_given = program.has("SERVE_TOKEN") || words.contains(&"--token-file");
        let mut served = Self { child, url, token: String::new(), log, http };
        if !is_given {
            served.token = eventually("it tells the token", async || {
                let said = served.log();
                let (_, token) = said.split_once("told only here: ")?;
                token.split_once('\n').map(|(token, _)| token.to_owned())
            })
            .await;
        }
        served
    }

    /// All that it has printed.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        answered(self.request(Method::GET, path).send().await.expect("answer")).await
    }

    /// A form, as a browser sends it, without what only a browser adds.
    pub fn form(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let body = Serializer::new(String::new()).extend_pairs(fields).finish();
        self.request(Method::POST, path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body)
    }

    /// The same, with the token.
    pub async fn post(&self, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
        answered(self.form(path, fields).bearer_auth(&self.token).send().await.expect("answer")).await
    }

    /// What tells a message that a list shows from the others.
    pub async fn key(&self, queue: &str, id: &str) -> String {
        let (_, page) = self.get(&format!("/queues/{queue}?id={id}")).await;
        let (_, rest) = page.split_once("/messages/").unwrap_or_else(|| panic!("{id} is not in {page}"));
        rest.split_once('"').expect("a link").0.to_owned()
    }

    /// Tells it to end, and waits until it has.
    pub async fn end(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().expect("it runs").to_string();
        let told = std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
        assert!(told.success());
        let ended = tokio::time::timeout(super::SOON, self.child.wait()).await;
        (ended.expect("it ends in time").expect("status").code(), self.log())
    }
}

pub async fn answered(response: Response) -> (u16, String) {
    (response.status().as_u16(), response.text().await.expect("text"))
}

async fn kept(output: impl AsyncRead + Unpin, log: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut log = log.lock().unwrap();
        log.push_str(&line);
        log.push('\n');
    }
}
