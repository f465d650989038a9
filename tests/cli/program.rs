//! The program, as a process.

use std::{
    ffi::{OsStr, OsString},
    process::Stdio,
};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::timeout,
};

use super::SOON;

/// What it is started with.
#[derive(Clone, Default)]
pub struct Program {
    environment: Vec<(&'static str, OsString)>,
    arguments: Vec<OsString>,
}

/// What it did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Program {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    pub fn has(&self, name: &str) -> bool {
        self.environment.iter().any(|(known, _)| *known == name)
    }

    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs a command of plain words, without a terminal.
    pub async fn run(&self, command: &str) -> Ran {
        self.run_with(&command.split(' ').collect::<Vec<_>>()).await
    }

    pub async fn run_with(&self, words: &[&str]) -> Ran {
        Self::ended(self.start(words)).await
    }

    pub fn start(&self, words: &[&str]) -> Child {
        let mut command = self.command(env!("CARGO_BIN_EXE_lapin-idempotent").as_ref());
        command.args(words).args(&self.arguments).stdin(Stdio::null());
        command.spawn().expect("spawn")
    }

    /// Runs a command on a terminal of its own, and answers a question.
    pub async fn run_on_terminal(&self, command: &str, answer: &str) -> Ran {
        let mut line = format!("{} {command}", env!("CARGO_BIN_EXE_lapin-idempotent"));
        for argument in &self.arguments {
            line = format!("{line} {}", argument.to_str().expect("plain"));
        }
        let mut command = self.command("script".as_ref());
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::piped());
        let mut child = command.spawn().expect("spawn");
        let mut stdin = child.stdin.take().expect("stdin");
        stdin.write_all(format!("{answer}\n").as_bytes()).await.expect("answer");
        let ran = Self::ended(child).await;
        drop(stdin);
        ran
    }

    /// What it is started with, for a shell.
    pub fn line(&self, words: &[&str]) -> String {
        let words = words.iter().map(|word| (*word).to_owned());
        let own = self.arguments.iter().map(|argument| argument.to_str().expect("plain").to_owned());
        let program = env!("CARGO_BIN_EXE_lapin-idempotent").to_owned();
        let quoted = |word: String| format!("'{word}'");
        std::iter::once(program).chain(words).chain(own).map(quoted).collect::<Vec<_>>().join(" ")
    }

    pub fn command(&self, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        for name in ["STORE_URL", "AMQP_URL", "SERVE_TOKEN", "COLUMNS"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub async fn ended(child: Child) -> Ran {
        let output = timeout(SOON, child.wait_with_output()).await.expect("it ends in time").expect("run");
        let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
        Ran {
            code: output.status.code().expect("a code"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// What it says in JSON, if it went well.
    pub async fn json(&self, command: &str) -> Vec<Value> {
        self.run(&format!("{command} --json")).await.ok().objects()
    }
}

impl Ran {
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    pub fn objects(&self) -> Vec<Value> {
        let object = |line: &str| match serde_json::from_str(line) {
            Ok(object @ Value::Object(_)) => object,
            other => panic!("no object: {line}: {other:?}"),
        };
        self.out.lines().map(object).collect()
    }

    /// All that anyone could read.
    pub fn all(&self) -> String {
        format!("{}\n{}", self.out, self.err)
    }
}

/// A name that may be a table's, and that no other test and no other run has.
pub fn short(name: &str) -> String {
    format!("{name}_{}", &uuid::Uuid::new_v4().simple().to_string()[..16])
}

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Runs a statement without values.
pub async fn sql(url: &str, sql: &str) {
    match url.split(':').next() {
        Some("postgres") => execute::<sqlx::PgConnection>(url, sql).await,
        Some("mysql") => execute::<sqlx::MySqlConnection>(url, sql).await,
        _ => execute::<sqlx::SqliteConnection>(url, sql).await,
    }
}

async fn execute<C: Connection>(url: &str, sql: &str)
where
    for<'c> &'c mut C: Executor<'c>,
{
    let mut connection = C::connect(url).await.expect("connect");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("statement");
}
