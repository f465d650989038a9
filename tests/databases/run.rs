//! The list of the tests.

#[path = "../support/mod.rs"]
mod support;

#[path = "batches.rs"]
mod batches;
#[path = "changes.rs"]
mod changes;
#[path = "claims.rs"]
mod claims;
#[path = "commit.rs"]
mod commit;
#[path = "conformance.rs"]
mod conformance;
#[path = "consuming.rs"]
mod consuming;
#[path = "crashes.rs"]
mod crashes;
#[path = "database/mod.rs"]
mod database;
#[path = "examples.rs"]
mod examples;
#[path = "flow.rs"]
mod flow;
#[path = "leases.rs"]
mod leases;
#[path = "limits.rs"]
mod limits;
#[path = "outages.rs"]
mod outages;
#[path = "../support/output.rs"]
mod output;
#[path = "partitions.rs"]
mod partitions;
#[path = "pooled.rs"]
mod pooled;
#[path = "processes.rs"]
mod processes;
#[path = "reconnects.rs"]
mod reconnects;
#[path = "refusals.rs"]
mod refusals;
#[path = "retention.rs"]
mod retention;
#[path = "schema.rs"]
mod schema;
#[path = "seeds/mod.rs"]
mod seeds;
#[path = "sharing.rs"]
mod sharing;
#[path = "tags.rs"]
mod tags;
#[path = "worker.rs"]
mod worker;

#[path = "sweep.rs"]
mod sweep;

use std::process::ExitCode;

use libtest_mimic::Arguments;
use sqlx::{MySql, Postgres, Sqlite};

use support::trials::{there, trial};

#[expect(clippy::too_many_lines, reason = "a list")]
pub(crate) fn main() -> ExitCode {
    if let Some(code) = processes::child() {
        return code;
    }
    let arguments = Arguments::from_args();
    let Ok(there) = there(&["AMQP_URL", "POSTGRES_URL", "MYSQL_URL", "REDIS_URL"]) else {
        return ExitCode::FAILURE;
    };
    let mut trials = Vec::new();
    macro_rules! trials {
        ($($module:ident::$test:ident $(<$($kind:ident),*>)?;)*) => {$(
            trials!(@ $module $test $(<$($kind),*>)?);
        )*};
        (@ $module:ident $test:ident) => {
            trials.push(trial(concat!(stringify!($module), "::", stringify!($test)), $module::$test, there));
        };
        (@ $module:ident $test:ident <$($kind:ident),*>) => {$({
            let name = format!(
                "{}::{}::{}", stringify!($kind).to_lowercase(), stringify!($module), stringify!($test)
            );
            trials.push(trial(&name, $module::$test::<$kind>, there));
        })*};
    }
    trials! {
        batches::batch_is_one_transaction<Postgres, MySql, Sqlite>;
        batches::duplicates_inside_a_batch_are_one_effect<Postgres, MySql, Sqlite>;
        batches::one_poison_message_never_fails_its_neighbours<Postgres, MySql, Sqlite>;
        batches::panic_in_a_batch_never_fails_its_neighbours<Postgres, MySql, Sqlite>;
        batches::stuck_handler_is_ended_in_time<Postgres, MySql, Sqlite>;
        batches::rival_of_one_message_does_not_hold_up_the_others<Postgres, MySql>;
        batches::commit_of_a_batch_with_an_unknown_outcome_is_a_failure;
        batches::consumers_handle_in_batches_and_ack_what_they_handled;
        changes::altered_columns_under_load_one_effect_each<Postgres, MySql>;
        changes::rewritten_tables_under_load_one_effect_each<Postgres, MySql>;
        changes::restarted_server_under_load_one_effect_each<Postgres, MySql>;
        changes::read_only_server_under_load_one_effect_each<Postgres, MySql>;
        changes::read_only_server_is_left_at_once<Postgres, MySql>;
        changes::complete_schema_is_left_alone_while_it_is_in_use<Postgres, MySql>;
        changes::statements_are_prepared_anew_in_the_same_claim;
        changes::dropped_claim_leaves_no_open_transaction<Postgres, MySql, Sqlite>;
        changes::handler_whose_statement_went_stale_runs_again_at_once;
        changes::consumer_with_more_workers_than_sessions_says_so_at_the_start<Postgres, MySql, Sqlite>;
        changes::store_says_how_many_sessions_it_can_have<Postgres, MySql, Sqlite>;
        claims::one_effect_however_often_it_is_delivered<Postgres, MySql, Sqlite>;
        claims::two_scopes_one_id_two_effects<Postgres, MySql, Sqlite>;
        claims::rival_waits_and_then_sees_a_duplicate<Postgres, MySql, Sqlite>;
        claims::rival_waits_and_then_handles_what_was_released<Postgres, MySql, Sqlite>;
        claims::rival_gives_up_after_the_lock_timeout<Postgres, MySql, Sqlite>;
        claims::exhausted_pool_is_an_error_in_time<Postgres, MySql, Sqlite>;
        claims::opposite_orders_never_deadlock<Postgres, MySql>;
        claims::large_batches_find_what_is_known<Postgres, MySql, Sqlite>;
        claims::large_batches_wait_for_rivals<Postgres, MySql>;
        claims::deadlock_of_two_handlers_ends_with_both_effects<Postgres, MySql>;
        claims::serialization_failure_is_done_again;
        claims::nul_and_other_invalid_ids_reach_no_table<Postgres, MySql, Sqlite>;
        commit::handler_swallows_an_error_nothing_is_acked;
        commit::handler_swallows_a_deadlock_nothing_is_acked;
        commit::handler_ends_the_transaction_itself_nothing_is_acked<Postgres, MySql, Sqlite>;
        commit::backend_terminated_in_the_handler_one_effect<Postgres, MySql>;
        commit::connection_cut_before_commit_one_effect<Postgres, MySql>;
        commit::connection_cut_after_commit_one_effect<Postgres, MySql>;
        conformance::of_transactions<Postgres, MySql, Sqlite>;
        conformance::of_transactions_behind_an_arc<Postgres, MySql, Sqlite>;
        conformance::of_leases<Postgres, MySql, Sqlite>;
        conformance::of_partitions;
        examples::transactional_books_each_message_once;
        examples::leased_http_uses_one_key_for_one_charge;
        examples::service_publishes_and_books_and_stops_gracefully;
        leases::completed_by_a_lease_is_a_duplicate_for_a_transaction<Postgres, MySql, Sqlite>;
        leases::tokens_grow_over_release_expiry_and_forgetting<Postgres, MySql, Sqlite>;
        leases::no_lease_pause_or_retention_is_too_long<Postgres, MySql, Sqlite>;
        leases::no_transaction_is_open_during_the_handler;
        leases::batches_of_leases_are_claimed_and_completed_in_order<Postgres, MySql, Sqlite>;
        leases::lease_gives_up_after_the_lock_timeout<Postgres, MySql, Sqlite>;
        limits::database_that_is_down_loses_and_parks_nothing;
        limits::message_that_ends_its_consumers_is_parked_and_no_other;
        outages::server_stopped_for_20_seconds_nothing_acked_meanwhile;
        outages::batch_asks_a_store_that_is_away_once;
        outages::frozen_server_is_an_error_in_time<Postgres, MySql>;
        outages::server_that_is_not_there_is_an_error_that_says_so<Postgres, MySql>;
        outages::passwords_are_never_printed<Postgres, MySql>;
        partitions::made_ahead_and_dropped_when_all_is_old;
        partitions::identity_is_unique_everywhere;
        partitions::the_present_has_one_whatever_the_width_was;
        partitions::slow_handler_stops_neither_claims_nor_the_purge;
        processes::two_processes_claim_one_id_at_once_one_runs<Postgres, MySql, Sqlite>;
        processes::zombie_whose_lease_ran_out_cannot_complete<Postgres, MySql, Sqlite>;
        processes::zombie_whose_transaction_was_ended_cannot_commit;
        reconnects::broker_killed_three_times_under_load_one_effect_each;
        reconnects::connection_cut_again_and_again_under_load_one_effect_each;
        reconnects::queue_deleted_and_created_anew_under_load_is_consumed_again;
        reconnects::connection_lost_under_a_handler_that_finishes_one_effect;
        reconnects::connection_lost_under_a_handler_that_is_stuck_one_effect;
        refusals::constraint_refuses_one_and_no_neighbour<Postgres, MySql, Sqlite>;
        refusals::shorter_column_refuses_one_and_no_neighbour<Postgres, MySql, Sqlite>;
        refusals::row_level_security_refuses_one_and_no_neighbour;
        refusals::encoding_refuses_one_and_no_neighbour;
        refusals::table_that_refuses_all_is_a_store_that_is_away<Postgres, MySql, Sqlite>;
        refusals::refused_message_is_parked_and_its_neighbours_are_handled;
        retention::late_duplicate_is_handled_once_more_only_after_the_purge<Postgres, MySql, Sqlite>;
        retention::purge_reads_what_it_deletes_and_no_more;
        retention::purge_skips_what_others_hold<Postgres, MySql>;
        retention::sweeper_keeps_the_young_and_stops_on_request<Postgres, MySql, Sqlite>;
        retention::message_older_than_the_retention_is_not_judged_by_a_missing_record<Postgres, MySql, Sqlite>;
        retention::consumer_does_not_start_with_a_retention_that_is_too_short;
        schema::missing_parts_are_named_with_the_sql_to_run<Postgres, MySql, Sqlite>;
        schema::eight_callers_create_it_at_once<Postgres, MySql, Sqlite>;
        schema::table_of_another_schema_and_reserved_words<Postgres, MySql>;
        schema::printed_sql_is_what_is_created<Postgres, MySql, Sqlite>;
        schema::consumer_does_not_start_without_the_table;
        sweep::one_message_cut_behind_every_frame_one_effect;
        sharing::consumers_in_one_process_share_a_queue_one_effect_each;
        sharing::single_active_consumer_is_followed_by_the_next_one_effect_each;
        tags::foreign_tag_would_be_seen;
    }
    // PgBouncer is installed with the servers where that can be done.
    let there_too = there && pooled::version().is_some();
    macro_rules! pooled {
        ($($module:ident::$test:ident;)*) => {$(
            trials.push(trial(concat!(stringify!($module), "::", stringify!($test)), $module::$test, there_too));
        )*};
    }
    pooled! {
        pooled::handler_ends_the_transaction_itself_nothing_is_acked;
        pooled::lost_prepared_statements_are_told_at_the_start;
        pooled::pooler_in_between_under_load_one_effect_each;
    }
    trials.extend(crashes::trials(there));
    trials.extend(seeds::trials(there));
    libtest_mimic::run(&arguments, trials).exit_code()
}
