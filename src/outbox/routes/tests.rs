//! Routes are held back, tried, and opened.

use proptest::prelude::*;

use super::*;

fn route(name: &str) -> Arc<Route> {
    Arc::new(Route { exchange: "e".to_owned(), routing_key: name.to_owned() })
}

fn told(routes: &mut Routes) -> Vec<(bool, usize)> {
    routes.changes().iter().map(|change| (change.is_left_out, change.keys.len())).collect()
}

#[tokio::test(start_paused = true)]
async fn nacked_route_is_held_back_and_tried_by_one() {
    let (mut routes, full) = (Routes::default(), route("full"));
    let now = Instant::now();
    assert!(routes.is_quiet() && routes.admit(&full, now) == Admission::Free);
    for _ in 0..3 {
        assert!(routes.went(&full, Admission::Free, Went::Nacked, now), "what was under way counts once");
    }
    assert_eq!((told(&mut routes), routes.held()), (vec![(true, 0)], 1));
    assert_eq!(routes.admit(&full, now), Admission::Held);
    assert!(routes.wait(&full, "key".into()) && !routes.wait(&route("other"), "key".into()));
    assert_eq!(routes.admit(&route("other"), now), Admission::Free);
    let until = routes.next_tick().unwrap();
    assert!(until >= now + FIRST_PAUSE / 2 && until <= now + FIRST_PAUSE);
    routes.tick(until - Duration::from_millis(1));
    assert!(told(&mut routes).is_empty());
    routes.tick(until);
    assert_eq!((told(&mut routes), routes.left_out().count()), (vec![(false, 1)], 0));
    let trial = routes.admit(&full, until);
    assert!(matches!(trial, Admission::Trial(_)), "{trial:?}");
    assert_eq!((routes.admit(&full, until), told(&mut routes)), (Admission::Held, vec![(true, 0)]));
    routes.went(&full, Admission::Free, Went::Confirmed, until);
    assert_eq!(routes.admit(&full, until), Admission::Held, "sent before the nack");
    routes.went(&full, trial, Went::Nacked, until);
    let longer = routes.next_tick().unwrap() - until;
    assert!(longer >= FIRST_PAUSE && longer <= 2 * FIRST_PAUSE, "{longer:?}");
}

#[tokio::test(start_paused = true)]
async fn route_opens_step_by_step() {
    let (mut routes, full) = (Routes::default(), route("full"));
    let mut now = Instant::now();
    routes.went(&full, Admission::Free, Went::Nacked, now);
    now = routes.next_tick().unwrap();
    routes.tick(now);
    let mut rounds = Vec::new();
    while !routes.is_quiet() {
        let mut sent = Vec::new();
        while let trial @ Admission::Trial(_) = routes.admit(&full, now) {
            sent.push(trial);
        }
        rounds.push(sent.len());
        for trial in sent {
            routes.went(&full, trial, Went::Confirmed, now);
        }
    }
    assert_eq!(rounds, [1, 2, 4, 8, 16, 32, 64, 128]);
    assert_eq!(routes.admit(&full, now), Admission::Free);
    assert_eq!(routes.changes().pop().map(|last| last.is_left_out), Some(false));
}

#[tokio::test(start_paused = true)]
async fn trial_that_says_nothing_is_made_again() {
    let (mut routes, full) = (Routes::default(), route("full"));
    let now = Instant::now();
    routes.went(&full, Admission::Free, Went::Nacked, now);
    let until = routes.next_tick().unwrap();
    routes.tick(until);
    let first = routes.admit(&full, until);
    routes.went(&full, first, Went::Unknown, until);
    let second = routes.admit(&full, until);
    assert_ne!(first, second);
    routes.went(&full, first, Went::Nacked, until);
    assert_eq!(routes.left_out().count(), 1);
    routes.went(&full, second, Went::Unknown, until);
    routes.tick(until + UNUSED);
    assert!(routes.is_quiet(), "nothing is sent there any more");
}

#[tokio::test(start_paused = true)]
async fn route_with_nothing_but_faults_is_held_back() {
    let (mut routes, gone) = (Routes::default(), route("gone"));
    let now = Instant::now();
    let fail = |routes: &mut Routes| {
        for _ in 0..FAULTS - 1 {
            routes.went(&gone, Admission::Free, Went::Fault, now);
        }
    };
    fail(&mut routes);
    routes.went(&gone, Admission::Free, Went::Confirmed, now);
    assert!(routes.is_quiet(), "some messages find a way");
    fail(&mut routes);
    assert!(routes.admit(&gone, now) == Admission::Free && routes.held() == 0);
    routes.went(&gone, Admission::Free, Went::Fault, now);
    assert!(routes.admit(&gone, now) == Admission::Held && routes.held() == 1);
}

#[tokio::test(start_paused = true)]
async fn routes_are_bounded() {
    let mut routes = Routes::default();
    let now = Instant::now();
    for number in 0..ROUTES {
        routes.went(&route(&number.to_string()), Admission::Free, Went::Fault, now);
    }
    assert!(routes.went(&route("first"), Admission::Free, Went::Nacked, now), "faults make room");
    for number in 1..ROUTES {
        assert!(routes.went(&route(&number.to_string()), Admission::Free, Went::Nacked, now));
    }
    assert!(!routes.went(&route("last"), Admission::Free, Went::Nacked, now));
    assert!(routes.went(&route("last"), Admission::Free, Went::Fault, now));
    assert_eq!((routes.held(), routes.admit(&route("last"), now)), (ROUTES, Admission::Free));
}

proptest! {
    /// Whatever comes, no more are under way than are allowed, what changed is told, and a route
    /// whose messages are confirmed opens in the end.
    #[test]
    fn every_route_opens_in_the_end(steps in prop::collection::vec((0_u8..6, 0_usize..4), 0..120)) {
        let (mut routes, full) = (Routes::default(), route("full"));
        let start = Instant::now();
        let (mut now, mut open, mut left_out) = (start, Vec::new(), false);
        let follow = |routes: &mut Routes, left_out: &mut bool| {
            for change in routes.changes() {
                *left_out = change.is_left_out;
            }
            assert_eq!(*left_out, routes.left_out().count() == 1);
        };
        for (what, at) in steps {
            match what {
                0 | 1 => match routes.admit(&full, now) {
                    Admission::Held => {}
                    admitted => open.push(admitted),
                },
                2 => {
                    now += Duration::from_secs(at as u64);
                    routes.tick(now);
                }
                _ if open.is_empty() => {}
                _ => {
                    let verdict = [Went::Confirmed, Went::Nacked, Went::Fault, Went::Unknown][at];
                    let sent = open.remove(at % open.len());
                    routes.went(&full, sent, verdict, now);
                }
            }
            follow(&mut routes, &mut left_out);
        }
        for _ in 0..2_000 {
            if routes.is_quiet() {
                break;
            }
            now += Duration::from_secs(1);
            routes.tick(now);
            match routes.admit(&full, now) {
                Admission::Held => {}
                admitted => open.push(admitted),
            }
            for sent in std::mem::take(&mut open) {
                routes.went(&full, sent, Went::Confirmed, now);
            }
            follow(&mut routes, &mut left_out);
        }
        prop_assert!(routes.is_quiet() && !left_out);
    }
}
