//! The way of one process to the brokers: a proxy for each node.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::support::proxy::{Action, Frame, From, Proxy};

/// Notices a silent peer in eight seconds, so that it matters if one is silent for nine.
const HEARTBEAT: &str = "?heartbeat=4";

pub struct Link {
    proxies: Vec<Proxy>,
}

impl Link {
    pub async fn start(nodes: &[&str]) -> Self {
        let mut proxies = Vec::new();
        for node in nodes {
            proxies.push(Proxy::start(node).await);
        }
        Self { proxies }
    }

    pub fn urls(&self) -> Vec<String> {
        self.proxies.iter().map(|proxy| format!("{}{HEARTBEAT}", proxy.url())).collect()
    }

    /// How many connections there are to a node.
    pub fn open_to(&self, node: usize) -> usize {
        self.proxies[node].open()
    }

    /// Cuts all connections: how many there were.
    pub fn cut(&self) -> usize {
        let open = self.proxies.iter().map(Proxy::open).sum();
        self.proxies.iter().for_each(Proxy::cut_all);
        open
    }

    /// Notifies when so many of these frames have passed.
    pub fn after(&self, from: From, method: (u16, u16), count: usize) -> Arc<Notify> {
        let passed = Arc::new(Notify::new());
        let notify = Arc::clone(&passed);
        self.rule(move |seen, frame| {
            if frame.is(from, method) && seen.fetch_add(1, Ordering::SeqCst) + 1 == count {
                notify.notify_one();
            }
            Action::Pass
        });
        passed
    }

    /// So many of these frames vanish, and the connection is cut before the next one. Counts them.
    pub fn lose(&self, from: From, method: (u16, u16), count: usize) -> Arc<AtomicUsize> {
        self.rule(move |seen, frame| {
            if !frame.is(from, method) {
                return Action::Pass;
            }
            match seen.fetch_add(1, Ordering::SeqCst) {
                n if n < count => Action::Drop,
                n if n == count => Action::CutBefore,
                _ => Action::Pass,
            }
        })
    }

    /// Nothing goes through any more, either way, until [`flow`](Self::flow). Counts the frames
    /// that are held.
    pub fn stall(&self) -> Arc<AtomicUsize> {
        self.rule(|seen, _| {
            seen.fetch_add(1, Ordering::SeqCst);
            Action::Freeze
        })
    }

    pub fn flow(&self) {
        self.rule(|_, _| Action::Pass);
        self.proxies.iter().for_each(Proxy::thaw);
    }

    fn rule(
        &self,
        rule: impl Fn(&AtomicUsize, Frame<'_>) -> Action + Clone + Send + 'static,
    ) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        for proxy in &self.proxies {
            let (rule, count) = (rule.clone(), Arc::clone(&count));
            proxy.rule(move |frame| rule(&count, frame));
        }
        count
    }
}
