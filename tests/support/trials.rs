//! Tests that need servers: listed as ignored where there are none, so that nothing looks green
//! that did not run.

use std::future::Future;

use libtest_mimic::Trial;

/// Whether the servers of these variables are there; an error if they must be and are not.
pub fn there(variables: &[&str]) -> Result<bool, ()> {
    let missing: Vec<&str> =
        variables.iter().copied().filter(|name| std::env::var_os(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    let missing = missing.join(", ");
    if std::env::var_os("REQUIRE_SERVICES").is_some() {
        eprintln!("not set: {missing}; and REQUIRE_SERVICES is");
        return Err(());
    }
    eprintln!("left out for want of servers ({missing}): all tests of this file. `make test` runs them.");
    Ok(false)
}

pub fn trial<F, T>(name: &str, test: T, there: bool) -> Trial
where
    F: Future<Output = ()>,
    T: FnOnce() -> F + Send + 'static,
{
    let run = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(test());
        Ok(())
    };
    Trial::test(name, run).with_ignored_flag(!there)
}
