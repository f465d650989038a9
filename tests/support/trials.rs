//! Tests that need servers: listed as ignored where there are none, so that nothing looks green
//! that did not run.

use std::{future::Future, process::ExitCode};

use libtest_mimic::{Arguments, Trial};

/// Lists the tests of the module that it stands in, as a function `trials`; those with `<Postgres,
/// MySql>` once for each of these databases. A test that is not listed is dead code.
macro_rules! trials {
    ($($test:ident $(<$($kind:ident),+>)?,)+) => {
        pub fn trials(there: bool) -> Vec<libtest_mimic::Trial> {
            let mut trials = Vec::new();
            $(trials!(@ trials there $test $($($kind)+)?);)+
            trials
        }
    };
    (@ $trials:ident $there:ident $test:ident) => {
        let name = $crate::support::trials::name(module_path!(), stringify!($test));
        $trials.push($crate::support::trials::trial(&name, $test, $there));
    };
    (@ $trials:ident $there:ident $test:ident $($kind:ident)+) => {$(
        let name = $crate::support::trials::name(module_path!(), stringify!($test));
        let name = format!("{}::{name}", stringify!($kind).to_lowercase());
        $trials.push($crate::support::trials::trial(&name, $test::<sqlx::$kind>, $there));
    )+};
}

/// `module::test`, without the program, and without the module that holds all others.
pub fn name(path: &str, test: &str) -> String {
    let (_, module) = path.split_once("::").expect("a module of the program");
    let module = module.split_once("::").map_or(module, |(_, inner)| inner);
    format!("{module}::{test}")
}

/// Runs the tests of these modules if the servers of these variables are there.
pub fn run(servers: &[&str], modules: &[fn(bool) -> Vec<Trial>]) -> ExitCode {
    let arguments = Arguments::from_args();
    let Ok(there) = there(servers) else { return ExitCode::FAILURE };
    let trials = modules.iter().flat_map(|trials| trials(there)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether the servers of these variables are there; an error if they must be and are not.
fn there(variables: &[&str]) -> Result<bool, ()> {
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
