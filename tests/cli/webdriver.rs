//! A real browser without a screen, by the protocol of the W3C.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{program::short, support::eventually};

/// How the protocol names an element in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    http: Client,
    profile: PathBuf,
}

impl Browser {
    pub async fn start(width: u32, height: u32) -> Self {
        let mut command = Command::new("chromedriver");
        command.args(["--port=0"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let started = command.kill_on_drop(true).spawn();
        let mut driver = started.expect("chromedriver: `scripts/services browser` installs it");
        let mut lines = BufReader::new(driver.stdout.take().expect("stdout")).lines();
        let port = loop {
            let line = lines.next_line().await.expect("read").expect("chromedriver tells its port");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').parse().expect("a port");
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let profile = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("browser"));
        let http = Client::builder().no_proxy().build().expect("client");
        let mut browser = Self { driver, port, session: String::new(), http, profile };
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--no-proxy-server".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!("--user-data-dir={}", browser.profile.display()),
        ];
        let options = json!({ "args": arguments });
        let capabilities = json!({ "browserName": "chrome", "goog:chromeOptions": options });
        let wanted = json!({ "capabilities": { "alwaysMatch": capabilities } });
        let session = browser.ask(Method::POST, "/session", Some(wanted)).await.expect("a session");
        browser.session = format!("/session/{}", session["sessionId"].as_str().expect("its name"));
        browser.size(width, height).await;
        browser
    }

    /// The narrowest window is wider than a telephone; what a page sees of it need not be.
    pub async fn size(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        let command = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": metrics });
        self.tell("/goog/cdp/execute", command).await;
    }

    /// What it answers, or the name of the error.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:{}{}{path}", self.port, self.session);
        let request = self.http.request(method, url).timeout(Duration::from_secs(60));
        let request = if let Some(body) = &body { request.json(body) } else { request };
        let answer: Value = request.send().await.expect("chromedriver").json().await.expect("JSON");
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].clone()),
        }
    }

    async fn tell(&self, path: &str, body: Value) -> Value {
        self.ask(Method::POST, path, Some(body)).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub async fn go(&self, url: &str) {
        self.tell("/url", json!({ "url": url })).await;
    }

    /// What a script returns, to look at the page. The page's own policy does not hold for it.
    pub async fn script(&self, script: &str) -> Value {
        self.tell("/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Waits for an element; a path in XML begins with a slash.
    async fn element(&self, selector: &str) -> String {
        let by = if selector.starts_with('/') { "xpath" } else { "css selector" };
        let found = eventually(selector, async || {
            let wanted = json!({ "using": by, "value": selector });
            self.ask(Method::POST, "/element", Some(wanted)).await.ok()
        });
        found.await[ELEMENT].as_str().expect("an element").to_owned()
    }

    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.tell(&format!("/element/{element}/click"), json!({})).await;
    }

    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.tell(&format!("/element/{element}/value"), json!({ "text": text })).await;
    }

    /// Waits until a heading is there, and says what the page shows.
    pub async fn page(&self, heading: &str) -> String {
        eventually(heading, async || {
            let shown = self
                .script("return [document.querySelector('h1')?.innerText, document.body?.innerText]")
                .await;
            (shown[0] == heading).then(|| shown[1].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    /// Whether a window of a script is open.
    pub async fn has_alert(&self) -> bool {
        self.ask(Method::GET, "/alert/text", None).await.is_ok()
    }

    /// In Base64.
    pub async fn screenshot(&self) -> String {
        let shot = self.ask(Method::GET, "/screenshot", None).await.expect("a screenshot");
        shot.as_str().expect("text").to_owned()
    }
}

/// Also of a test that fails; or the browser would outlive its driver.
impl Drop for Browser {
    fn drop(&mut self) {
        let end = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(
                stream,
                "DELETE {} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
                self.session
            )?;
            stream.read(&mut [0; 64]).map(drop)
        };
        if !self.session.is_empty() {
            let _ = end();
        }
        let _ = self.driver.start_kill();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
