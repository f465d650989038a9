//! Private brokers, alone or in a cluster, that a test may kill, freeze and start again.

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{eventually, unique};

pub struct Node {
    dir: PathBuf,
    url: String,
    /// Neither killed nor frozen by the test.
    answers: AtomicBool,
}

impl Node {
    pub async fn start() -> Self {
        Self::create("start", &[]).await
    }

    /// A new member of the cluster of `other`, which runs.
    async fn join(other: &str) -> Self {
        Self::create("join", &[other]).await
    }

    async fn create(verb: &str, arguments: &[&str]) -> Self {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique("node"));
        let url = run(verb, &dir, arguments).await;
        Self { dir, url, answers: AtomicBool::new(true) }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name that it has in its cluster.
    pub fn name(&self) -> String {
        let settings = std::fs::read_to_string(self.dir.join("node.env")).expect("node.env");
        settings.lines().find_map(|line| line.strip_prefix("NODE=")).expect("NODE").to_owned()
    }

    /// Puts what was declared on disk. Without it, a node that is killed right after a queue was
    /// declared can start again without the queue, or without what is in it: Mnesia writes its log
    /// a while later (Khepri, which keeps the metadata of 4.2 and later, before it answers), and Ra
    /// the names of the quorum queues, in tables of `dets`.
    pub async fn sync(&self) {
        const SYNC: &str = "[ok = dets:sync(Table) || Table <- dets:all()], \
             case catch rabbit_khepri:is_enabled() of \
                 true -> synced; \
                 _ -> mnesia:sync_log(), dumped = mnesia:dump_log(), synced \
             end.";
        assert_eq!(self.ctl(&["eval", SYNC]).await, "synced");
    }

    /// SIGKILL, as a power cut would end it, but for the disk's own cache. See `sync`.
    pub async fn kill(&self) {
        self.answers.store(false, Ordering::SeqCst);
        run("kill", &self.dir, &[]).await;
    }

    /// SIGSTOP: alive, connected, and silent.
    pub async fn pause(&self) {
        self.answers.store(false, Ordering::SeqCst);
        run("pause", &self.dir, &[]).await;
    }

    /// SIGCONT: as if it had never paused, but for what the others have done without it.
    pub async fn resume(&self) {
        run("resume", &self.dir, &[]).await;
        self.answers.store(true, Ordering::SeqCst);
    }

    /// The same ports and data again. If all nodes of a cluster are down, start them at the same
    /// time: each waits for those that outlived it.
    pub async fn start_again(&self) {
        assert_eq!(run("start", &self.dir, &[]).await, self.url);
        self.answers.store(true, Ordering::SeqCst);
    }

    /// Runs `rabbitmqctl` on it.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        run("ctl", &self.dir, arguments).await
    }

    /// What it has logged as errors, for people.
    pub fn errors(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.join("log/node.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("[error]")).map(ToOwned::to_owned).collect()
    }

    /// Sets or clears its memory alarm, for which the whole cluster stops to read from publishers.
    pub async fn memory_alarm(&self, on: bool) {
        const KNOWN: &str = "{Known, _} = rpc:multicall([node() | nodes()], rabbit_alarm, get_alarms, [], 5000), \
             lists:usort([lists:keymember({resource_limit, memory, node()}, 1, Alarms) || Alarms <- Known]).";
        self.ctl(&["set_vm_memory_high_watermark", if on { "0" } else { "0.6" }]).await;
        let wanted = format!("[{on}]");
        eventually("each node knows of the alarm, or of its end", async || {
            (self.ctl(&["eval", KNOWN]).await == wanted).then_some(())
        })
        .await;
    }

    /// Closes its clients' connections, as an operator would: 320, `CONNECTION_FORCED`, with
    /// `reason`.
    pub async fn close_connections(&self, reason: &str) {
        // --global: of all virtual hosts, not of all nodes.
        self.ctl(&["close_all_connections", "--global", reason]).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = command("kill", &self.dir).status();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Nodes that share their queues.
pub struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    pub async fn start(size: usize) -> Self {
        let first = Node::start().await;
        let other = first.dir.to_str().expect("UTF-8").to_owned();
        let joining: Vec<_> = (1..size)
            .map(|_| {
                let other = other.clone();
                tokio::spawn(async move { Node::join(&other).await })
            })
            .collect();
        // All of them before any may panic: what has started is dropped then.
        let mut joined = Vec::new();
        for node in joining {
            joined.push(node.await);
        }
        let mut nodes = vec![first];
        nodes.extend(joined.into_iter().map(|node| node.expect("a node joins")));
        Self { nodes }
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn urls(&self) -> Vec<&str> {
        self.nodes.iter().map(Node::url).collect()
    }

    /// Which node leads a quorum queue: one that is neither killed nor frozen, and all others of
    /// this sort agree.
    pub async fn leader_of(&self, queue: &str) -> usize {
        // list_queues would ask the frozen nodes too, and wait for them; this asks what each node
        // has in memory.
        eventually("the queue has a leader", async || {
            let names: Vec<_> = self.nodes.iter().map(Node::name).collect();
            let answering = || (0..names.len()).filter(|&n| self.nodes[n].answers.load(Ordering::SeqCst));
            let asked = answering().map(|n| format!("'{}'", names[n])).collect::<Vec<_>>().join(", ");
            let question = format!(
                "{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
                 {{Name, _}} = amqqueue:get_pid(Queue), \
                 {{Answers, []}} = rpc:multicall([{asked}], ra_leaderboard, lookup_leader, [Name], 5000), \
                 [{{_, Leader}}] = lists:usort(Answers), Leader."
            );
            // It fails while they do not agree.
            let node = &self.nodes[answering().next().expect("a node that answers")];
            let leader = attempt("ctl", &node.dir, &["eval", &question]).await.ok()?;
            answering().find(|&n| names[n] == leader)
        })
        .await
    }
}

fn command(verb: &str, dir: &PathBuf) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq-node"));
    command.arg(verb).arg(dir);
    command
}

async fn run(verb: &str, dir: &PathBuf, arguments: &[&str]) -> String {
    attempt(verb, dir, arguments).await.unwrap_or_else(|failure| panic!("{failure}"))
}

async fn attempt(verb: &str, dir: &PathBuf, arguments: &[&str]) -> Result<String, String> {
    let mut command = command(verb, dir);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("join");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{verb} {arguments:?}: {text} {}", String::from_utf8_lossy(&output.stderr)))
}
