//! One consumer, one message after the other.

use std::time::{Duration, SystemTime};

use crate::{
    idempotency::IdempotencyStore,
    message::Fingerprint,
    testing::conformance::{
        bench::{Answer, Bench, Outcome, answer, ensure, error, failed, unexpected},
        capabilities::Need,
        runner::Runner,
    },
};

/// How far the store's clock may be off: less than the error of a wrong time zone.
const CLOCKS: Duration = Duration::from_secs(600);

pub(in super::super) async fn all<S: IdempotencyStore>(runner: &mut Runner<'_, S>) {
    runner.case(("store_is_ready", "check"), &[], is_ready).await;
    runner.case(("session_comes_exactly_with_a_claim", "contract 1"), &[], session).await;
    runner.case(("completed_stays_completed", "I2"), &[], stays_completed).await;
    runner.case(("completed_keeps_fingerprint_and_time", "contract 3"), &[], keeps_fingerprint).await;
    runner.case(("released_claim_can_be_claimed", "I3"), &[], released).await;
    runner.case(("dropped_session_can_be_claimed", "I3"), &[], dropped).await;
    runner.case(("each_is_answered_in_order", "contract 1"), &[], each).await;
}

async fn is_ready<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    bench.a.check().await.map_err(error("check"))?;
    bench.b.check().await.map_err(error("check of a second handle"))
}

async fn session<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    // The form of each answer is checked by every claim of the suite.
    let request = bench.request("new");
    let session = bench.acquire(&bench.a, &request).await?;
    bench.a.complete(session).await.map_err(error("complete"))?;
    bench.completed(&bench.a, &request).await?;
    Ok(())
}

async fn stays_completed<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    let request = bench.request("done");
    bench.complete(&bench.a, &request).await?;
    for _ in 0..3 {
        bench.completed(&bench.b, &request).await?;
        bench.completed(&bench.a, &request).await?;
        // The work on another message changes nothing.
        bench.is_free(&bench.a, &bench.request("other")).await?;
    }
    Ok(())
}

async fn keeps_fingerprint<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    let first = bench.request("used twice");
    bench.complete(&bench.a, &first).await?;
    // The same ID on another message, as by a faulty publisher.
    let mut second = first.clone();
    second.fingerprint = Fingerprint::of(b"another body");
    for store in [&bench.b, &bench.a] {
        match bench.settle(store, &second).await? {
            Answer::Completed { fingerprint, .. } if fingerprint == first.fingerprint => {}
            other => return Err(unexpected(&second, "Completed with the fingerprint of the first", &other)),
        }
    }
    let processed_at = bench.completed(&bench.b, &first).await?;
    let now = SystemTime::now();
    let off = now.duration_since(processed_at).unwrap_or_else(|ahead| ahead.duration());
    ensure!(off < CLOCKS, "expected processed_at to be within {CLOCKS:?} of now; it is off by {off:?}");
    let again = bench.completed(&bench.a, &first).await?;
    ensure!(
        again == processed_at,
        "expected processed_at to stay {processed_at:?}; a later claim found {again:?}"
    );
    Ok(())
}

async fn released<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    let request = bench.request("released");
    for store in [&bench.a, &bench.a, &bench.b] {
        let session = bench.acquire(store, &request).await?;
        store.release(session).await.map_err(error("release"))?;
    }
    bench.complete(&bench.a, &request).await?;
    bench.completed(&bench.b, &request).await?;
    Ok(())
}

async fn dropped<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    let request = bench.request("dropped");
    drop(bench.acquire(&bench.a, &request).await?);
    let session = bench.acquire_later(&bench.b, &request).await?;
    bench.b.complete(session).await.map_err(error("complete"))?;
    bench.completed(&bench.a, &request).await?;
    Ok(())
}

/// `claim_each` and `complete_each`, which a store may do in one round trip.
async fn each<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    for id in ["3", "1"] {
        bench.complete(&bench.a, &bench.request(id)).await?;
    }
    // Where one session is open at a time, no second claim can be acquired beside it.
    let concurrent = bench.capabilities.has(Need::Concurrency);
    let ids: &[&str] = if concurrent { &["4", "3", "0", "1", "2"] } else { &["3", "1"] };
    let requests: Vec<_> = ids.iter().map(|id| bench.request(id)).collect();
    let answers = bench.a.claim_each(&requests).await;
    ensure!(
        answers.len() == requests.len(),
        "expected {} answers of claim_each; came {}",
        requests.len(),
        answers.len()
    );
    let mut sessions = Vec::new();
    for (request, claims) in requests.iter().zip(answers) {
        let known = ["3", "1"].contains(&request.message_id.as_str());
        match answer(claims.map_err(error("claim_each"))?)? {
            Answer::Acquired(session) if !known => sessions.push(session),
            Answer::Completed { fingerprint, .. } if known && fingerprint == request.fingerprint => {}
            other => {
                let expected = if known { "Completed with its fingerprint" } else { "Acquired" };
                return Err(unexpected(request, expected, &other));
            }
        }
    }
    if !concurrent {
        sessions.push(bench.acquire(&bench.a, &bench.request("0")).await?);
    }
    let open = sessions.len();
    let completed = bench.a.complete_each(sessions).await;
    ensure!(completed.len() == open, "expected {open} answers of complete_each; came {}", completed.len());
    for done in completed {
        done.map_err(error("complete_each"))?;
    }
    for request in &requests {
        bench.completed(&bench.b, request).await?;
    }
    let none = bench.a.claim_each(&[]).await.len() + bench.a.complete_each(Vec::new()).await.len();
    if none > 0 {
        return Err(failed(format!("expected no answers to no requests; came {none}")));
    }
    Ok(())
}
