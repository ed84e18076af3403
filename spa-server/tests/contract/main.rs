//! The contract of the gate: one suite, written once, run against every back-end of the kernel's
//! firewall with real packets, in network namespaces. Needs root.
//!
//! A back-end is one line in `suite!` below, and one entry in `subject.rs`. What it promises is
//! said there; what it doesn't is shown not to be so. Each "nothing gets through" stands beside a
//! "this gets through" on the same path.

#[cfg(test)]
mod always;
#[cfg(test)]
mod corners;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod cutting;
#[cfg(test)]
mod elements;
#[cfg(test)]
mod gates;
#[cfg(test)]
mod hammer;
#[cfg(test)]
mod installing;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod model;
#[cfg(test)]
mod once;
#[cfg(test)]
mod opening;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod probe;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod services;
#[cfg(test)]
mod space;
#[cfg(test)]
mod subject;
#[cfg(test)]
mod targets;
#[cfg(test)]
mod trial;
#[cfg(test)]
mod watching;

/// Makes a test of every case for each of these back-ends.
#[cfg(test)]
macro_rules! suite {
    ($($name:ident: $subject:ident,)*) => {
        $(mod $name { cases!($subject); })*
    };
}

/// Makes a test of every case for one back-end.
#[cfg(test)]
macro_rules! cases {
    ($subject:ident) => {
        cases!($subject, opening:
            a_grant_opens_for_its_source_only_and_hides_from_all_others,
            a_rejected_port_looks_like_a_closed_one,
            what_is_granted_passes_the_hosts_default_drop,
            an_established_connection_outlives_its_grant,
            the_kernel_closes_by_itself_with_nobody_alive,
            a_refresh_moves_the_end,
            loopback_passes_and_knock_ports_are_hidden,
            a_new_gate_finds_what_the_old_one_admitted,
        );
        cases!($subject, elements:
            a_network_is_admitted_whole_and_apart_from_its_members,
            a_range_is_admitted_whole_or_port_by_port,
            a_batch_is_made_in_its_order,
            a_bad_change_in_a_batch_is_refused_with_all_of_it,
            a_snapshot_tells_what_is_admitted_and_for_how_long,
        );
        cases!($subject, corners:
            no_scan_tells_a_guarded_port_from_a_closed_one,
            broadcasts_and_multicasts_are_no_way_in,
            an_address_that_only_a_policy_makes_local_is_guarded,
            what_others_translate_and_mark_is_theirs,
            a_mark_of_others_closes_nothing,
        );
        cases!($subject, targets:
            another_local_port_answers_who_is_granted,
            a_host_behind_this_one_answers_who_is_granted,
            a_masqueraded_forward_needs_no_way_back,
            only_forwarded_connections_are_masqueraded,
            what_others_send_to_the_same_place_is_theirs,
            a_family_without_an_address_stays_refused,
            a_host_that_does_not_forward_is_told_of,
            a_port_that_a_container_publishes_is_hidden_like_any_other,
            a_mark_that_others_take_off_opens_nothing_that_is_published,
            who_is_always_admitted_gets_to_what_is_published_whatever_others_mark,
            what_is_merely_forwarded_is_nobodys_business,
        );
        cases!($subject, once:
            the_first_connection_uses_a_grant_up,
            a_repeated_first_packet_belongs_to_the_connection,
            the_first_flow_of_datagrams_uses_a_grant_up,
            a_network_is_never_granted_one_connection,
            a_forward_for_one_connection,
            a_mark_of_others_lets_nobody_in,
        );
        cases!($subject, always:
            who_is_always_admitted_needs_no_grant,
            a_new_list_takes_the_place_of_the_old_one,
        );
        cases!($subject, trial:
            a_trial_ends_by_itself_with_nobody_alive,
            what_is_confirmed_stays_without_a_gap,
            a_trial_can_be_made_longer_and_shorter,
            what_a_trial_accepts_it_goes_on_accepting,
            a_trial_that_others_end_is_missed_and_goes_on,
        );
        cases!($subject, cutting:
            a_connection_that_is_cut_ends_at_both_ends,
            what_is_cut_is_one_connection_and_no_other_with_its_peer,
            a_cut_connection_can_be_made_again_once_it_is_lifted,
            datagrams_of_a_flow_that_is_cut_go_nowhere,
            what_is_cut_stays_so_for_a_gate_that_is_installed_again_or_gone,
            what_a_dead_daemon_has_cut_is_refused_for_a_while_only,
            very_many_can_be_cut_at_once,
        );
        cases!($subject, installing:
            a_second_installation_changes_nothing,
            rules_of_others_are_the_same_before_and_after,
            a_new_plan_takes_the_place_of_the_old_one,
            nothing_slips_through_while_a_plan_changes,
            an_idle_connection_survives_the_installation_where_nothing_was_tracked,
            open_mode_leaves_refusing_to_the_host,
        );
        cases!($subject, crash:
            an_installation_that_dies_can_be_finished_or_removed,
            a_change_of_plan_that_dies_leaves_the_ports_hidden,
            a_removal_that_dies_can_be_finished,
            a_tool_that_fails_leaves_what_was_there_before,
            a_trial_that_can_not_be_begun_leaves_the_one_before_its_time,
            a_change_that_fails_is_told,
            others_that_hold_the_lock_are_waited_for,
        );
        cases!($subject, scale:
            a_thousand_at_once_are_all_there_and_open,
            ten_thousand_at_once_are_all_there_and_open,
            a_full_set_is_told_and_the_rest_goes_on,
        );
        cases!($subject, model: any_sequence_leaves_what_the_grants_need,);
        cases!($subject, watching:
            whatever_others_do_is_noticed_and_mended,
            its_own_changes_are_no_disturbance,
            a_look_counts_and_names_what_is_missing,
            a_gate_that_is_gone_is_missed,
        );
    };
    ($subject:ident, $module:ident: $($case:ident,)*) => {
        mod $module {
            $(#[test]
            fn $case() {
                crate::$module::$case(&crate::lab::Lab::new(&crate::subject::$subject));
            })*
        }
    };
}

#[cfg(test)]
mod hook {
    cases!(HOOK, outside:
        nobody_closes_for_a_dead_daemon_but_the_next_one,
        commands_hide_nothing_and_cut_nothing,
    );
    cases!(HOOK, opening:
        an_established_connection_outlives_its_grant,
        a_refresh_moves_the_end,
        a_new_gate_finds_what_the_old_one_admitted,
    );
    cases!(HOOK, elements:
        a_network_is_admitted_whole_and_apart_from_its_members,
        a_range_is_admitted_whole_or_port_by_port,
        a_batch_is_made_in_its_order,
        a_bad_change_in_a_batch_is_refused_with_all_of_it,
        a_snapshot_tells_what_is_admitted_and_for_how_long,
    );
    cases!(HOOK, model: any_sequence_leaves_what_the_grants_need,);
}

#[cfg(test)]
mod dry_run {
    cases!(DRY_RUN, outside: a_dry_run_touches_nothing_and_says_what_it_would_do,);
    cases!(DRY_RUN, elements:
        a_batch_is_made_in_its_order,
        a_bad_change_in_a_batch_is_refused_with_all_of_it,
    );
}

#[cfg(test)]
suite! {
    ipset_nft: IPSET_NFT,
    ipset_legacy: IPSET_LEGACY,
    iptables_nft: IPTABLES_NFT,
    iptables_legacy: IPTABLES_LEGACY,
    nftables: NFTABLES,
}
