//! The suite that tries tables of messages, tried.

mod fault;
mod faulty;
mod owners;
mod reads;
mod table;

use std::collections::BTreeSet;

use fault::Fault::{self as F};
use faulty::{Faulty, InMemory};
use lapin_idempotent::testing::{
    MemoryOutbox,
    conformance::{self, OutboxCapabilities, Report},
};

use table::FAULTS;

use super::{
    Fails::{self, AllBut, Only},
    check,
};

async fn run(fault: F) -> Report {
    let open = async || Faulty::pair(fault, 16);
    conformance::run_outbox(open, OutboxCapabilities::new().tells_ended(), InMemory).await
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_an_outbox_fails_its_cases() {
    for (fault, fails) in FAULTS {
        check(fault, &run(*fault).await, fails);
    }
}

/// A case that no fault can fail would say nothing.
#[tokio::test(start_paused = true)]
async fn every_case_of_an_outbox_can_fail() {
    let only = |fails: &Fails| match fails {
        Only(names) => names.to_vec(),
        AllBut(_) => Vec::new(),
    };
    let shown: BTreeSet<_> = FAULTS.iter().flat_map(|(_, fails)| only(fails)).collect();
    let report = run(F::None).await;
    let all: BTreeSet<_> = report.cases().iter().map(|case| case.name).collect();
    assert_eq!(shown, all);
}

#[tokio::test(start_paused = true)]
async fn an_outbox_in_memory_conforms() {
    for (lanes, has_floor) in [(16, true), (1, true), (3, false)] {
        let open = async || {
            let outbox = MemoryOutbox::with_lanes(lanes);
            let outbox = if has_floor { outbox } else { outbox.without_floor() };
            [outbox.elsewhere(), outbox]
        };
        let capabilities = OutboxCapabilities::new();
        let capabilities = if has_floor { capabilities.tells_ended() } else { capabilities };
        conformance::run_outbox(open, capabilities, InMemory).await.assert();
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_outbox_says_it_can_do_is_checked() {
    let open = async || Faulty::pair(F::None, 4);
    let report = conformance::run_outbox(open, OutboxCapabilities::new(), InMemory).await;
    check("tells what it should not", &report, &Only(&["ended_transactions_are_told_as_stated"]));
    let report = conformance::run_outbox(open, OutboxCapabilities::new().tells_ended().exclusive(), InMemory);
    check("is more than it says", &report.await, &Only(&[]));
}

#[tokio::test(start_paused = true)]
async fn a_check_that_finds_nothing_missing_fails() {
    let of = |fault| async move {
        let [outbox, _] = Faulty::pair(fault, 1);
        outbox
    };
    let report = conformance::run_outbox_check(|| of(F::None)).await;
    check("says Ok", &report, &AllBut(&[]));
    // It must say what, too.
    let report = conformance::run_outbox_check(|| of(F::IsNotReady)).await;
    check("says nothing", &report, &AllBut(&[]));
}

#[tokio::test(start_paused = true)]
async fn an_outbox_that_cannot_be_opened_fails_every_case() {
    let open = async || -> [Faulty; 2] { panic!("no such database") };
    let report = conformance::run_outbox(open, OutboxCapabilities::new(), InMemory).await;
    check("not opened", &report, &AllBut(&[]));
}
