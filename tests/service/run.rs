//! The list of the tests, and how one is run.

#[path = "../support/mod.rs"]
mod support;

#[path = "at_delivery.rs"]
mod at_delivery;
#[path = "at_rebalance.rs"]
mod at_rebalance;
#[path = "at_sending.rs"]
mod at_sending;
#[path = "broker_restart.rs"]
mod broker_restart;
#[path = "cuts.rs"]
mod cuts;
#[path = "delayed_retries.rs"]
mod delayed_retries;
#[path = "examples.rs"]
mod examples;
#[path = "faults.rs"]
mod faults;
#[path = "guard.rs"]
mod guard;
#[path = "handles.rs"]
mod handles;
#[path = "interop.rs"]
mod interop;
#[path = "isolation.rs"]
mod isolation;
#[path = "limits.rs"]
mod limits;
#[path = "messages.rs"]
mod messages;
#[path = "one_bad_among_many.rs"]
mod one_bad_among_many;
#[path = "one_bad_publish.rs"]
mod one_bad_publish;
#[path = "options.rs"]
mod options;
#[path = "parking.rs"]
mod parking;
#[path = "publisher.rs"]
mod publisher;
#[path = "redelivery.rs"]
mod redelivery;
#[path = "returns.rs"]
mod returns;
#[path = "starting.rs"]
mod starting;
#[path = "status.rs"]
mod status;
#[path = "stopping.rs"]
mod stopping;
#[path = "subscription.rs"]
mod subscription;
#[cfg(feature = "tls")]
#[path = "tls.rs"]
mod tls;

#[path = "unpark.rs"]
mod unpark;
#[path = "work_queue.rs"]
mod work_queue;

use std::process::ExitCode;

use libtest_mimic::Arguments;

use support::trials::{there, trial};

#[expect(clippy::too_many_lines, reason = "it is a list")]
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let Ok(there) = there(&["AMQP_URL"]) else { return ExitCode::FAILURE };
    let mut trials = Vec::new();
    macro_rules! trials {
        ($($module:ident::$test:ident,)*) => {$(
            trials.push(trial(concat!(stringify!($module), "::", stringify!($test)), $module::$test, there));
        )*};
    }
    trials! {
        at_sending::confirm_lost_one_effect,
        at_sending::connection_cut_before_the_confirm_one_effect,
        at_delivery::ack_lost_one_effect,
        at_delivery::connection_cut_between_commit_and_ack_one_effect,
        at_rebalance::consumer_joins_and_leaves_one_effect_each,
        at_rebalance::consumer_dies_in_the_handler_one_effect,
        broker_restart::what_is_synced_outlives_a_kill,
        broker_restart::in_the_middle_of_2000_publishes_none_lost_none_doubled,
        cuts::at_every_frame_both_directions,
        cuts::frozen_connection_is_given_up,
        cuts::late_confirm_is_waited_for,
        cuts::publish_lost_on_the_way_is_sent_again,
        faults::broker_killed_and_restarted_under_load,
        faults::broker_stopped_for_30_seconds_and_continued,
        faults::memory_alarm_set_and_cleared,
        faults::queue_deleted_with_10000_in_flight,
        faults::channel_closed_by_the_broker_fails_only_the_message_at_fault,
        faults::connection_closed_by_the_operator,
        faults::cluster_leader_killed_nothing_confirmed_is_lost,
        examples::loop_of_ones_own_holds_what_it_cannot_park,
        examples::payments_are_right_with_the_guard_and_wrong_without,
        examples::jsonl_lines_are_published_and_bad_ones_reported,
        examples::jsonl_unroutable_lines_come_back,
        examples::jsonl_never_truncates_what_it_reads,
        examples::jsonl_that_is_killed_leaves_what_was_there_and_what_failed,
        examples::jsonl_is_utf_8_and_keys_are_not_empty,
        guard::panics_in_a_key_source_and_an_observer_end_no_consumer,
        returns::headers_of_strangers_are_not_obeyed,
        guard::panics_that_a_handler_leaves_behind_end_no_consumer,
        guard::handler_fails_then_succeeds_one_effect,
        guard::same_id_with_another_body_is_a_duplicate_if_wanted,
        guard::two_scopes_one_id_two_effects,
        guard::key_from_a_json_pointer,
        guard::handler_in_a_consumer_knows_the_identity,
        guard::missing_id_derived_from_content,
        guard::missing_id_handled_unguarded,
        guard::shutdown_finishes_what_is_in_hand_and_leaves_the_rest,
        guard::stuck_handler_is_given_up_after_the_drain_timeout,
        guard::panicking_handler_counts_as_a_failed_attempt,
        handles::enqueued_messages_are_in_the_queue_in_order,
        interop::message_of_another_client_is_guarded,
        interop::another_client_sees_the_stamp,
        interop::guard_in_a_consume_loop_of_ones_own,
        messages::one_number_that_the_broker_cannot_read_fails_alone,
        messages::message_that_is_handed_back_keeps_its_first_timestamp,
        messages::a_messages_own_mandatory_goes_before_the_publishers,
        messages::user_id_travels_and_a_wrong_one_fails_alone,
        options::topology_is_there_before_publishing_resumes,
        options::topology_that_is_refused_is_a_typed_error,
        options::without_mandatory_an_unroutable_message_is_published_into_the_void,
        options::a_message_has_its_own_deadline,
        options::every_attempt_is_shown_with_its_result,
        options::trace_context_travels_in_the_headers,
        options::bytes_in_flight_are_bounded,
        options::too_large_a_body_is_refused_before_sending,
        options::several_connections_and_channels_share_the_load,
        options::messages_go_over_the_connection_that_is_up,
        options::credentials_come_from_a_provider_at_every_connect,
        options::nacked_messages_wait_for_room_and_fail_alone,
        delayed_retries::delayed_retries_of_the_broker_are_used_where_it_has_them,
        isolation::message_nacked_by_one_queue_of_a_fanout_may_have_been_published,
        isolation::message_whose_refusal_is_cut_off_fails_alone,
        isolation::messages_to_missing_exchanges_fail_each_for_itself,
        limits::conflicts_before_the_handler_ran_are_not_its_failures,
        isolation::bad_messages_of_two_kinds_fail_each_for_its_own_reason,
        limits::deleted_parking_queue_is_declared_anew,
        limits::failing_message_that_cannot_be_delayed_is_parked_after_its_attempts,
        limits::held_failures_do_not_spend_the_limit,
        limits::identity_that_is_busy_elsewhere_loses_and_parks_nothing,
        limits::lease_whose_owner_died_is_waited_for,
        limits::message_near_the_limit_is_published_anew,
        limits::message_that_cannot_be_parked_is_held_until_it_can_be,
        limits::store_that_hangs_loses_and_parks_nothing,
        limits::store_that_is_away_loses_and_parks_nothing,
        one_bad_among_many::consumer_parks_exactly_the_bad_one_on_a_classic_queue,
        one_bad_among_many::consumer_parks_exactly_the_bad_one_on_a_quorum_queue,
        one_bad_publish::publisher_names_exactly_the_bad_one,
        parking::parking_outlives_the_node_that_it_began_on,
        parking::reject_is_parked_with_its_reason,
        parking::same_id_with_another_body_is_parked,
        parking::no_id_is_parked,
        parking::undecodable_body_is_parked,
        parking::expiring_message_is_parked_for_good,
        parking::message_stays_when_it_cannot_be_parked,
        parking::message_without_an_id_stays_until_it_can_be_parked,
        publisher::every_one_of_100000_gets_its_own_verdict_classic,
        publisher::every_one_of_100000_gets_its_own_verdict_quorum,
        publisher::unroutable_is_an_error_and_gives_the_message_back,
        publisher::unroutable_is_retried_on_request,
        publisher::missing_exchange_is_retried_on_request,
        publisher::invalid_messages_leave_the_connection_alone,
        publisher::results_come_in_order,
        publisher::closed_publisher_refuses_and_pending_messages_come_back,
        publisher::wrong_credentials_and_dead_ports_are_typed_errors,
        publisher::cancelled_calls_leave_nothing_behind,
        redelivery::failures_are_delayed_counted_and_parked,
        redelivery::attempts_are_counted_across_restarts,
        redelivery::held_instead_of_delayed_if_wanted,
        redelivery::delayed_message_holds_nobody_up,
        redelivery::handlers_own_delay_is_kept,
        redelivery::message_that_expired_here_before_is_not_dropped_as_a_cycle,
        redelivery::message_stays_when_it_cannot_be_delayed,
        redelivery::no_duration_is_too_long_for_a_consumer,
        redelivery::ack_behind_a_delayed_copy_lost_one_effect,
        redelivery::confirm_of_a_delayed_copy_lost_one_effect,
        redelivery::deleted_delay_queue_is_declared_anew,
        returns::consumer_that_may_not_declare_loses_nothing,
        returns::consumer_timeout_loses_and_doubles_nothing,
        returns::graceful_stops_bring_nothing_under_suspicion,
        returns::suspect_that_is_held_holds_nobody_up,
        returns::message_that_fills_the_frame_comes_back_and_is_handled,
        returns::lost_connections_lose_double_and_park_nothing,
        returns::memory_alarm_loses_and_parks_nothing_that_did_not_fail,
        starting::panic_in_the_topology_is_a_failed_connect,
        starting::reason_of_a_failed_reconnect_is_told,
        starting::more_channels_than_the_broker_allows_are_refused,
        starting::names_that_are_too_long_are_refused_with_what_helps,
        starting::consumer_declares_its_topology_on_every_connection,
        stopping::paused_consumer_takes_nothing_and_loses_nothing,
        stopping::start_reacts_to_shutdown,
        stopping::shutdown_takes_less_than_half_a_minute_whatever_hangs,
        status::status_follows_the_consumer,
        status::duplicates_are_counted_by_cause,
        status::lost_subscription_shows_until_there_is_another,
        status::consumer_that_gets_nothing_done_is_failing_and_recovers,
        subscription::connection_lost_while_it_subscribes_is_no_refusal,
        subscription::exclusive_consumer_is_alone,
        subscription::consumer_of_higher_priority_is_served_first,
        subscription::prefetch_is_bounded_by_bytes,
        subscription::dropped_consumer_leaves_no_subscription,
        unpark::unparked_message_takes_effect_once,
        unpark::unparked_message_is_handled_as_long_as_its_effect_is_known,
        unpark::looking_at_parked_messages_never_uses_them_up,
        unpark::unpark_moves_what_is_chosen_and_loses_nothing,
        work_queue::declared_twice_is_fine,
        work_queue::what_the_broker_takes_out_is_parked,
        work_queue::what_the_broker_takes_out_waits_for_the_parking_queue,
        work_queue::queue_that_differs_is_left_alone_and_told,
        work_queue::question_about_a_queue_never_creates_it,
        work_queue::missing_rights_are_told_by_what_to_do,
        work_queue::delayed_retry_is_the_brokers_own_or_refused,
        work_queue::consumer_timeout_is_the_queues_own_or_refused,
    }
    #[cfg(feature = "tls")]
    trials! {
        tls::broker_is_verified_by_authority_and_name,
        tls::client_certificate_is_shown_and_read_from_files,
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
