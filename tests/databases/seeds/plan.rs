//! What goes wrong in a run, and when: all of it follows from the seed.

use std::thread::panicking;

use fastrand::Rng;

pub const MESSAGES: usize = 2000;
pub const CONSUMERS: usize = 2;

/// The broker takes seconds to start again, so it dies in one of so many runs.
const BROKER_DIES: u64 = 8;

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The connection of a consumer is cut, wherever it is.
    Cut(usize),
    /// So many acks of a consumer vanish, and its connection is cut before the next one.
    LoseAcks(usize, usize),
    /// A consumer is killed, and started again.
    Kill(usize),
    /// A consumer is asked to stop, and started again.
    Restart(usize),
    /// The broker is killed, and started again.
    KillBroker,
}

/// Is printed if the test panics while it lives.
#[derive(Debug)]
pub struct Plan {
    #[allow(dead_code)] // for who reads the output
    seed: u64,
    /// After so many messages were sent, the publisher's connection is cut before the next confirm.
    pub lost_confirms: Vec<usize>,
    /// After so many deliveries were decided.
    pub faults: Vec<(usize, Fault)>,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut lost_confirms: Vec<_> =
            (0..random.usize(1..=3)).map(|_| random.usize(50..MESSAGES - 200)).collect();
        lost_confirms.sort_unstable();
        let mut faults: Vec<_> = (0..random.usize(4..=7)).map(|_| Self::fault(&mut random)).collect();
        if seed.is_multiple_of(BROKER_DIES) {
            faults.push(Fault::KillBroker);
        }
        let mut faults: Vec<_> =
            faults.into_iter().map(|fault| (random.usize(20..MESSAGES - 400), fault)).collect();
        faults.sort_by_key(|(after, _)| *after);
        Self { seed, lost_confirms, faults }
    }

    fn fault(random: &mut Rng) -> Fault {
        let consumer = random.usize(0..CONSUMERS);
        match random.u8(0..4) {
            0 => Fault::Cut(consumer),
            1 => Fault::LoseAcks(consumer, random.usize(0..3)),
            2 => Fault::Kill(consumer),
            _ => Fault::Restart(consumer),
        }
    }

    pub fn kills_broker(&self) -> bool {
        self.faults.iter().any(|(_, fault)| matches!(fault, Fault::KillBroker))
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if panicking() {
            eprintln!("{self:?}");
        }
    }
}
