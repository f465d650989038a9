//! Consumer processes that are cut off, killed and started again.

use std::future::ready;

use super::{
    super::{
        support::{
            eventually,
            node::Node,
            proxy::{Action, From, Proxy, method},
        },
        worker::Worker,
    },
    plan::{CONSUMERS, Fault},
};

pub struct Crew<'a> {
    node: &'a Node,
    members: Vec<Member>,
}

struct Member {
    arguments: Vec<String>,
    proxy: Proxy,
    worker: Worker,
    /// How many deliveries were decided by those before this worker.
    before: usize,
}

impl Member {
    fn start_again(&mut self) {
        self.before += self.worker.decided();
        self.worker = Worker::start(&self.arguments);
    }

    fn lose_acks(&self, count: usize) {
        let mut lost = 0;
        self.proxy.rule(move |frame| {
            if lost > count || !frame.is(From::Client, method::BASIC_ACK) {
                return Action::Pass;
            }
            lost += 1;
            if lost > count { Action::CutBefore } else { Action::Drop }
        });
    }
}

impl<'a> Crew<'a> {
    pub async fn start(node: &'a Node, arguments: &[String]) -> Self {
        let mut members = Vec::new();
        for _ in 0..CONSUMERS {
            let proxy = Proxy::start(node.url()).await;
            let arguments = [arguments, &["--amqp".to_owned(), proxy.url().to_owned()]].concat();
            let worker = Worker::start(&arguments);
            members.push(Member { arguments, proxy, worker, before: 0 });
        }
        Self { node, members }
    }

    /// Starts those again that have ended: a worker whose connection is cut before it consumes
    /// gives up.
    pub fn supervise(&mut self) {
        for member in &mut self.members {
            if member.worker.has_ended() {
                member.start_again();
            }
        }
    }

    /// Waits until so many deliveries are decided.
    pub async fn decides(&mut self, count: usize) {
        eventually("the deliveries are decided", || {
            self.supervise();
            let decided = self.members.iter().map(|member| member.before + member.worker.decided());
            ready((decided.sum::<usize>() >= count).then_some(()))
        })
        .await;
    }

    pub async fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Cut(member) => self.members[member].proxy.cut_all(),
            Fault::LoseAcks(member, count) => self.members[member].lose_acks(count),
            Fault::Kill(member) => {
                self.members[member].worker.kill().await;
                self.members[member].start_again();
            }
            Fault::Restart(member) => {
                self.members[member].end().await;
                self.members[member].start_again();
            }
            Fault::KillBroker => {
                self.node.kill().await;
                self.node.start_again().await;
            }
        }
    }

    pub async fn stop(mut self) {
        for member in &mut self.members {
            member.end().await;
        }
    }
}

impl Member {
    /// Asks the worker to stop. One that has hardly begun dies of it.
    async fn end(&mut self) {
        self.worker.terminate();
        self.worker.ends().await;
    }
}
