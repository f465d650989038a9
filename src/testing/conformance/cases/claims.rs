//! One consumer, one message after the other.

use std::time::{Duration, SystemTime};

use crate::{
    idempotency::IdempotencyStore,
    message::Fingerprint,
    testing::conformance::{
        capabilities::Need,
        fixture::{Answer, Fixture, Outcome, answer, ensure, error, failed, unexpected},
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

async fn is_ready<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    fixture.a.check().await.map_err(error("check"))?;
    fixture.b.check().await.map_err(error("check of a second handle"))
}

async fn session<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    // The form of each answer is checked by every claim of the suite.
    let request = fixture.request("new");
    let session = fixture.acquire(&fixture.a, &request).await?;
    fixture.a.complete(session).await.map_err(error("complete"))?;
    fixture.completed(&fixture.a, &request).await?;
    Ok(())
}

async fn stays_completed<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("done");
    fixture.complete(&fixture.a, &request).await?;
    for _ in 0..3 {
        fixture.completed(&fixture.b, &request).await?;
        fixture.completed(&fixture.a, &request).await?;
        // The work on another message changes nothing.
        fixture.is_free(&fixture.a, &fixture.request("other")).await?;
    }
    Ok(())
}

async fn keeps_fingerprint<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let first = fixture.request("used twice");
    fixture.complete(&fixture.a, &first).await?;
    // The same ID on another message, as by a faulty publisher.
    let mut second = first.clone();
    second.fingerprint = Fingerprint::of(b"another body");
    for store in [&fixture.b, &fixture.a] {
        match fixture.settle(store, &second).await? {
            Answer::Completed { fingerprint, .. } if fingerprint == first.fingerprint => {}
            other => return Err(unexpected(&second, "Completed with the fingerprint of the first", &other)),
        }
    }
    let processed_at = fixture.completed(&fixture.b, &first).await?;
    let now = SystemTime::now();
    let off = now.duration_since(processed_at).unwrap_or_else(|ahead| ahead.duration());
    ensure!(off < CLOCKS, "expected processed_at to be within {CLOCKS:?} of now; it is off by {off:?}");
    let again = fixture.completed(&fixture.a, &first).await?;
    ensure!(
        again == processed_at,
        "expected processed_at to stay {processed_at:?}; a later claim found {again:?}"
    );
    Ok(())
}

async fn released<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("released");
    for store in [&fixture.a, &fixture.a, &fixture.b] {
        let session = fixture.acquire(store, &request).await?;
        store.release(session).await.map_err(error("release"))?;
    }
    fixture.complete(&fixture.a, &request).await?;
    fixture.completed(&fixture.b, &request).await?;
    Ok(())
}

async fn dropped<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("dropped");
    drop(fixture.acquire(&fixture.a, &request).await?);
    let session = fixture.acquire_later(&fixture.b, &request).await?;
    fixture.b.complete(session).await.map_err(error("complete"))?;
    fixture.completed(&fixture.a, &request).await?;
    Ok(())
}

/// `claim_each` and `complete_each`, which a store may do in one round trip.
async fn each<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    for id in ["3", "1"] {
        fixture.complete(&fixture.a, &fixture.request(id)).await?;
    }
    // Where one session is open at a time, no second claim can be acquired beside it.
    let concurrent = fixture.capabilities.has(Need::Concurrency);
    let ids: &[&str] = if concurrent { &["4", "3", "0", "1", "2"] } else { &["3", "1"] };
    let requests: Vec<_> = ids.iter().map(|id| fixture.request(id)).collect();
    let answers = fixture.a.claim_each(&requests).await;
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
        sessions.push(fixture.acquire(&fixture.a, &fixture.request("0")).await?);
    }
    let open = sessions.len();
    let completed = fixture.a.complete_each(sessions).await;
    ensure!(completed.len() == open, "expected {open} answers of complete_each; came {}", completed.len());
    for done in completed {
        done.map_err(error("complete_each"))?;
    }
    for request in &requests {
        fixture.completed(&fixture.b, request).await?;
    }
    let none = fixture.a.claim_each(&[]).await.len() + fixture.a.complete_each(Vec::new()).await.len();
    if none > 0 {
        return Err(failed(format!("expected no answers to no requests; came {none}")));
    }
    Ok(())
}
