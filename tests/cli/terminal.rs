//! The program on a terminal, by `script`, and what is to be seen there.

use std::{
    num::NonZero,
    process::Stdio,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin},
    time::timeout,
};
use vt100::Parser;

use super::{
    SOON,
    program::{Program, short},
    support::eventually,
};

/// A terminal on which the program runs. Where it leaves the terminal as it was, it says `the same
/// terminal, code 0` at the end.
pub struct Terminal {
    child: Child,
    keys: ChildStdin,
    seen: Arc<Mutex<Seen>>,
    pid: std::path::PathBuf,
}

struct Seen {
    screen: Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    pub fn start(program: &Program, (rows, columns): (u16, u16), words: &[&str]) -> Self {
        let pid = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("pid"));
        let line = format!(
            r#"stty rows {rows} cols {columns}; before=$(stty -g)
            sh -c 'echo $$ >"$0"; exec "$@"' {} {}; code=$?
            if [ "$before" = "$(stty -g)" ]; then echo "the same terminal, code $code"; fi"#,
            pid.display(),
            program.line(words)
        );
        let mut command = program.command("script".as_ref());
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env("SHELL", "/bin/sh").env("TERM", "xterm-256color").stdin(Stdio::piped());
        let mut child = command.spawn().expect("spawn");
        let keys = child.stdin.take().expect("stdin");
        let mut shown = child.stdout.take().expect("stdout");
        let size = |length| NonZero::new(length).expect("a size");
        let parser = Parser::new(size(rows), size(columns), 0);
        let seen = Arc::new(Mutex::new(Seen { screen: parser, bytes: Vec::new() }));
        let filled = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = shown.read(&mut part).await {
                let mut seen = filled.lock().unwrap();
                seen.screen.process(&part[..read]);
                seen.bytes.extend_from_slice(&part[..read]);
            }
        });
        Self { child, keys, seen, pid }
    }

    pub fn screen(&self) -> String {
        self.seen.lock().unwrap().screen.screen().contents()
    }

    /// Everything that was ever written to it.
    pub fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap().bytes.clone()
    }

    /// Waits for a text to be seen.
    pub async fn shows(&self, text: &str) -> String {
        let seen = async || {
            let screen = self.screen();
            if screen.contains(text) { Some(screen) } else { None }
        };
        let seen = timeout(SOON / 3, eventually(text, seen)).await.ok();
        seen.unwrap_or_else(|| panic!("{text:?} is not on the screen:\n{}", self.screen()))
    }

    pub async fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.expect("press");
        self.keys.flush().await.expect("press");
    }

    pub fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(&self.pid).expect("a pid");
        let told = std::process::Command::new("kill").args([signal, pid.trim()]).status().expect("kill");
        assert!(told.success());
    }

    /// Ends with this code, and leaves the terminal as it was.
    pub async fn ends(mut self, code: i32) -> String {
        let text = format!("the same terminal, code {code}");
        let screen = self.shows(&text).await;
        timeout(SOON, self.child.wait()).await.expect("it ends in time").expect("run");
        let bytes = String::from_utf8_lossy(&self.bytes()).into_owned();
        assert_eq!(bytes.matches("\u{1b}[?1049h").count(), bytes.matches("\u{1b}[?1049l").count());
        assert!(!self.seen.lock().unwrap().screen.screen().hide_cursor());
        let _ = std::fs::remove_file(&self.pid);
        screen
    }
}
