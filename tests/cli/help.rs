//! The help of every command is in `docs/cli.md`.

use std::collections::VecDeque;

use super::program::Program;

trials! {
    help_says_what_is_dangerous,
}

/// The help of the program and of all its commands, each under its name.
pub async fn helps() -> Vec<(String, String)> {
    let (mut helps, mut next) = (Vec::new(), VecDeque::from([String::new()]));
    while let Some(command) = next.pop_front() {
        let ran = Program::new().run(format!("{command} --help").trim_start()).await.ok();
        let commands = ran.out.split_once("Commands:\n").map(|(_, rest)| rest.split("\n\n").next().unwrap());
        for line in commands.unwrap_or_default().lines() {
            let name = line.strip_prefix("  ").filter(|name| !name.starts_with(' '));
            if let Some(name) = name.and_then(|name| name.split(' ').next()) {
                next.push_back(format!("{command} {name}").trim_start().to_owned());
            }
        }
        helps.push((command, ran.out));
    }
    helps
}

pub async fn help_says_what_is_dangerous() {
    for (command, word) in [
        ("store forget", "ONCE MORE"),
        ("replay open", "ONCE MORE"),
        ("replay send", "ONCE MORE"),
        ("outbox discard", "FOR GOOD"),
        ("parked discard", "FOR GOOD"),
        ("parked unpark", "TWICE"),
    ] {
        let ran = Program::new().run(&format!("{command} --help")).await.ok();
        assert!(ran.out.contains(word) && ran.out.contains("--dry-run"), "{ran:?}");
    }
    for (_, help) in helps().await {
        let mut lines = help.lines().filter(|line| !line.starts_with("Usage:"));
        assert!(lines.all(|line| line.chars().count() <= 100), "{help}");
    }
}
