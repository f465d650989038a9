//! The promises, against a real broker. `make test` starts one; without `AMQP_URL` these tests are
//! listed as ignored.

#![allow(
    unreachable_pub,
    missing_debug_implementations,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::missing_panics_doc
)]

#[cfg(feature = "sqlite")]
#[macro_use]
#[allow(dead_code)]
mod support;

#[cfg(feature = "sqlite")]
mod service {
    use super::support;

    mod at_delivery;
    mod at_rebalance;
    mod at_sending;
    mod broker_restart;
    mod computing;
    mod cuts;
    mod delayed_retries;
    mod dependency;
    mod examples;
    mod faults;
    mod guard;
    mod handles;
    mod interop;
    mod isolation;
    #[cfg(feature = "testing")]
    mod kit;
    mod limits;
    mod messages;
    mod one_bad_among_many;
    mod one_bad_publish;
    mod options;
    mod own_loop;
    mod parking;
    mod publisher;
    mod redelivery;
    mod returns;
    mod starting;
    mod status;
    mod stopping;
    mod subscription;
    #[cfg(feature = "tls")]
    mod tls;
    mod unpark;
    mod work_queue;

    pub(crate) fn main() -> std::process::ExitCode {
        support::trials::run(
            &["AMQP_URL"],
            &[
                at_delivery::trials,
                at_rebalance::trials,
                at_sending::trials,
                broker_restart::trials,
                computing::trials,
                cuts::trials,
                delayed_retries::trials,
                dependency::trials,
                examples::trials,
                faults::trials,
                guard::trials,
                handles::trials,
                interop::trials,
                isolation::trials,
                #[cfg(feature = "testing")]
                kit::trials,
                limits::trials,
                messages::trials,
                one_bad_among_many::trials,
                one_bad_publish::trials,
                options::trials,
                own_loop::trials,
                parking::trials,
                publisher::trials,
                redelivery::trials,
                returns::trials,
                starting::trials,
                status::trials,
                stopping::trials,
                subscription::trials,
                #[cfg(feature = "tls")]
                tls::trials,
                unpark::trials,
                work_queue::trials,
            ],
        )
    }
}

#[cfg(feature = "sqlite")]
fn main() -> std::process::ExitCode {
    service::main()
}

#[cfg(not(feature = "sqlite"))]
fn main() {
    eprintln!("left out for want of the feature `sqlite`: all service tests. `make test` runs them.");
}
