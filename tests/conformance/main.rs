//! The suite that tries stores, tried: a store with one fault fails the cases that are about it,
//! and no other.

#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod leased;
mod outbox;
mod transactional;

use std::{collections::BTreeSet, fmt, time::Duration};

use lapin_idempotent::{
    MemoryStore,
    testing::conformance::{self, Capabilities, Report, Verdict},
};
use leased::{Fault as L, LEASE, Leased};
use transactional::{Fault as T, Transactional, Written};

/// The cases that fail with a fault.
enum Fails {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}
use Fails::{AllBut, Only};

const LEASED: &[(L, Fails)] = &[
    (L::None, Only(&[])),
    (L::AcksWithoutRemembering, AllBut(&["store_is_ready", "tokens_grow"])),
    (L::GivesCompletedOutAgain, AllBut(&["store_is_ready", "tokens_grow"])),
    (
        L::GivesOutWhatIsInProgress,
        Only(&[
            "rival_is_kept_out_until_completion",
            "rival_acquires_after_release",
            "race_has_one_winner",
            "stale_lease_does_not_complete",
            "stale_lease_does_not_release",
            "stale_lease_is_not_renewed",
            "keep_alive_keeps_a_lease",
        ]),
    ),
    (L::TakesTheAskersFingerprint, Only(&["completed_keeps_fingerprint_and_time"])),
    (L::TellsNoTime, Only(&["completed_keeps_fingerprint_and_time"])),
    (L::SessionForDuplicates, AllBut(&["store_is_ready"])),
    (L::CompletesWithoutFence, Only(&["stale_lease_does_not_complete"])),
    (L::ReleasesWithoutFence, Only(&["stale_lease_does_not_release"])),
    (L::RenewsWithoutFence, Only(&["stale_lease_is_not_renewed"])),
    (
        L::IgnoresRelease,
        Only(&[
            "released_claim_can_be_claimed",
            "two_scopes_are_two_identities",
            "late_duplicate_is_acquired_after_purge",
        ]),
    ),
    (
        L::LosesDroppedClaims,
        Only(&[
            "dropped_session_can_be_claimed",
            "stale_lease_does_not_complete",
            "stale_lease_does_not_release",
            "stale_lease_is_not_renewed",
            "tokens_grow",
        ]),
    ),
    (L::CountsTokensPerClaim, Only(&["tokens_grow"])),
    (L::RenewsNothing, Only(&["stale_lease_is_not_renewed", "keep_alive_keeps_a_lease"])),
    (L::FoldsCase, Only(&["identity_keeps_case"])),
    (L::TrimsSpaces, Only(&["identity_keeps_spaces"])),
    (L::Normalizes, Only(&["identity_is_not_normalized"])),
    (L::StripsQuotes, Only(&["identity_takes_special_characters"])),
    (L::ReadsNumbers, Only(&["identity_is_text"])),
    (L::CutsLongIds, Only(&["identity_of_full_length"])),
    (
        L::IgnoresScope,
        Only(&[
            "identity_keeps_case",
            "identity_keeps_spaces",
            "identity_is_not_normalized",
            "identity_takes_special_characters",
            "identity_is_text",
            "identity_of_full_length",
            "two_scopes_are_two_identities",
            "scope_and_id_are_not_run_together",
        ]),
    ),
    (L::RunsTogether, Only(&["scope_and_id_are_not_run_together"])),
    (L::AnswersEachSorted, Only(&["each_is_answered_in_order"])),
    (L::PurgesEverything, Only(&["purge_keeps_what_is_young", "purge_forgets_only_what_is_older"])),
    (L::PurgesYoungWithOld, Only(&["purge_forgets_only_what_is_older"])),
    (L::PurgesWithoutLimit, Only(&["purge_is_bounded"])),
    (L::PurgesWhatIsInProgress, Only(&["purge_leaves_claims_in_progress"])),
    (
        L::PurgesNothing,
        Only(&[
            "purge_forgets_only_what_is_older",
            "purge_is_bounded",
            "late_duplicate_is_acquired_after_purge",
        ]),
    ),
    (L::Hangs, AllBut(&["store_is_ready", "tokens_grow"])),
    (
        L::Panics,
        Only(&[
            "completed_stays_completed",
            "released_claim_can_be_claimed",
            "two_scopes_are_two_identities",
            "rival_acquires_after_release",
            "race_has_one_winner",
            "stale_lease_does_not_release",
            "tokens_grow",
            "purge_forgets_only_what_is_older",
            "purge_is_bounded",
            "late_duplicate_is_acquired_after_purge",
        ]),
    ),
    (L::IsNotReady, Only(&["store_is_ready"])),
];

const BOUNDED: &[(L, Fails)] = &[(L::ForgetsWhenFull, Only(&["full_store_refuses_rather_than_forgets"]))];

const INSPECTED: &[(L, Fails)] = &[
    (L::None, Only(&[])),
    (L::FoldsCase, Only(&["find_is_exact"])),
    (L::FindsNothing, Only(&["find_tells_what_a_claim_would"])),
    (L::FindsNoLeases, Only(&["find_tells_what_is_in_progress"])),
    (L::CountsAllScopes, Only(&["count_is_of_one_scope"])),
    (L::ForgetsWhatIsInProgress, Only(&["forget_leaves_claims_in_progress"])),
    (L::ForgetsNothing, Only(&["forgotten_identity_can_be_claimed"])),
];

const TRANSACTIONAL: &[(T, Fails)] = &[
    (T::None, Only(&[])),
    (T::AnswersSorted, Only(&["batch_is_answered_in_order", "big_batch"])),
    (T::LocksInTheOrderOfTheRequest, Only(&["opposite_batches_do_not_deadlock"])),
    (
        T::LooksBeforeItLocks,
        Only(&[
            "rival_is_kept_out_until_completion",
            "race_has_one_winner",
            "opposite_batches_do_not_deadlock",
            "effect_of_a_race_is_one",
        ]),
    ),
    (
        T::CompletesOnlyTheFirst,
        Only(&[
            "batch_is_answered_in_order",
            "batch_is_completed_together",
            "big_batch",
            "opposite_batches_do_not_deadlock",
        ]),
    ),
    (T::ReleasesOnlyTheFirst, Only(&["released_batch_can_be_claimed"])),
    (T::RefusesBigBatches, Only(&["big_batch"])),
    (
        T::OpensASessionForDuplicates,
        AllBut(&[
            "store_is_ready",
            "released_batch_can_be_claimed",
            "effect_is_undone_by_release",
            "effect_is_undone_with_a_dropped_session",
        ]),
    ),
    (
        T::KeepsTheLocksOfDroppedSessions,
        Only(&[
            "dropped_session_can_be_claimed",
            "released_batch_can_be_claimed",
            "effect_is_undone_with_a_dropped_session",
        ]),
    ),
    (
        T::EffectOutsideTheTransaction,
        Only(&["effect_is_undone_by_release", "effect_is_undone_with_a_dropped_session"]),
    ),
    (T::EffectCommittedByRelease, Only(&["effect_is_undone_by_release"])),
    (
        T::EffectForgotten,
        Only(&[
            "effect_is_committed_with_its_identity",
            "effect_is_undone_by_release",
            "effect_is_undone_with_a_dropped_session",
            "effect_of_a_race_is_one",
        ]),
    ),
];

fn check(fault: impl fmt::Debug, report: &Report, fails: &Fails) {
    let failed: Vec<_> = report.failed().collect();
    let applies = |name: &&str| {
        let is = |case: &&conformance::CaseReport| case.name == *name;
        let case = report.cases().iter().find(is).expect("a case of the suite");
        !matches!(case.verdict, Verdict::NotApplicable(_))
    };
    let expected: Vec<_> = match fails {
        Only(names) => names.to_vec(),
        AllBut(names) => {
            let all = report.cases().iter().map(|case| case.name).filter(applies);
            all.filter(|name| !names.contains(name)).collect()
        }
    };
    assert_eq!(failed, expected, "{fault:?}\n{report}");
    assert_eq!(report.is_passed(), failed.is_empty());
    for case in report.cases() {
        if let Verdict::Failed(text) = &case.verdict {
            assert!(text.contains("expected"), "{}: {text}", case.name);
        }
    }
}

async fn try_transactional(fault: T) -> Report {
    let store = Transactional::new(fault);
    let effects = Written(store.clone());
    conformance::run_with_effects(async || store.clone(), Capabilities::transactional(), effects).await
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_a_store_with_leases_fails_its_cases() {
    for (fault, fails) in LEASED {
        let store = Leased::new(*fault);
        let report = conformance::run(async || store.clone(), Capabilities::leased(LEASE)).await;
        check(fault, &report, fails);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_a_bounded_store_fails_its_case() {
    for (fault, fails) in BOUNDED {
        let store = Leased::new(*fault);
        let report = conformance::run(async || store.clone(), Capabilities::leased(LEASE).bounded()).await;
        check(fault, &report, fails);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_an_inspection_fails_its_case() {
    for (fault, fails) in INSPECTED {
        let store = Leased::new(*fault);
        let report = conformance::run_inspection(async || store.clone(), Capabilities::leased(LEASE)).await;
        check(fault, &report, fails);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_a_store_with_transactions_fails_its_cases() {
    for (fault, fails) in TRANSACTIONAL {
        check(fault, &try_transactional(*fault).await, fails);
    }
}

/// A case that no fault can fail would say nothing.
#[tokio::test(start_paused = true)]
async fn every_case_can_fail() {
    let only = |fails: &Fails| match fails {
        Only(names) => names.to_vec(),
        AllBut(_) => Vec::new(),
    };
    let leased = [LEASED, BOUNDED, INSPECTED].into_iter().flatten().flat_map(|(_, fails)| only(fails));
    let transactional = TRANSACTIONAL.iter().flat_map(|(_, fails)| only(fails));
    let shown: BTreeSet<_> = leased.chain(transactional).collect();
    let store = Leased::new(L::None);
    let inspection = conformance::run_inspection(async || store.clone(), Capabilities::leased(LEASE)).await;
    let contract = try_transactional(T::None).await;
    let all: BTreeSet<_> = contract.cases().iter().chain(inspection.cases()).map(|case| case.name).collect();
    // Only a store that forgets everything, or gives everything out again, fails this one.
    let general = BTreeSet::from(["session_comes_exactly_with_a_claim"]);
    assert_eq!(&all - &shown, general);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_opened_fails_every_case() {
    let open = async || -> MemoryStore { panic!("no such database") };
    let report = conformance::run(open, Capabilities::leased(LEASE)).await;
    check("not opened", &report, &AllBut(&[]));
}

#[tokio::test(start_paused = true)]
async fn what_a_store_says_it_can_do_is_checked() {
    let memory = MemoryStore::new(1000).lease(LEASE);
    let waits = Capabilities::leased(LEASE).waits(true).time_limit(Duration::from_secs(5));
    let report = conformance::run(async || memory.clone(), waits).await;
    check("does not wait", &report, &Only(&["rival_is_kept_out_until_completion"]));

    let batches = Capabilities::leased(LEASE).batches(true);
    let report = conformance::run(async || memory.clone(), batches).await;
    let cases = [
        "batch_is_answered_in_order",
        "batch_is_completed_together",
        "released_batch_can_be_claimed",
        "big_batch",
        "opposite_batches_do_not_deadlock",
    ];
    assert_eq!(report.failed().collect::<Vec<_>>(), cases, "{report}");

    let memory = MemoryStore::new(100_000).lease(LEASE);
    let report = conformance::run(async || memory.clone(), Capabilities::leased(LEASE).bounded()).await;
    check("is not full soon", &report, &Only(&["full_store_refuses_rather_than_forgets"]));
}
