//! All tests, by what they are about.

mod addresses;
mod admission;
mod agents;
mod around;
mod availability;
mod enrolment;
mod identity;
mod policies;
mod services;
mod uninstall;
mod wire;

use crate::runner::{Reach, Test};

/// All of them, in the order they run in.
pub(crate) fn all() -> Vec<Test> {
    macro_rules! test {
        ($reach:ident, $module:ident::$name:ident) => {
            Test { name: stringify!($name), reach: Reach::$reach, run: $module::$name }
        };
    }
    vec![
        test!(Namespace, agents::agents_are_ready_and_find_nothing_wrong),
        // The one that takes longest begins early.
        test!(Namespace, around::nothing_reaches_a_pod_around_the_policy),
        test!(Namespace, enrolment::connections_live_on_when_pods_are_enrolled_and_leave),
        test!(Namespace, wire::enrolled_pods_speak_in_tls_between_nodes_only),
        test!(Namespace, services::services_are_reached_by_name_and_by_cluster_ip),
        test!(Namespace, services::headless_services_are_reached_by_the_names_of_their_pods),
        test!(Namespace, services::a_service_keeps_a_client_at_one_pod_where_it_is_to),
        test!(Namespace, services::a_service_that_stays_on_the_node_refuses_where_it_has_no_pod),
        test!(Namespace, services::node_ports_are_reached_from_outside),
        test!(Namespace, policies::probes_pass_where_plain_text_is_refused),
        test!(Namespace, policies::a_policy_refuses_and_says_which),
        test!(Namespace, admission::policies_with_a_mistake_are_refused_by_the_api_server),
        test!(Namespace, identity::an_agent_gets_no_identity_of_another_node),
        test!(Namespace, identity::nobody_but_agents_gets_a_certificate),
        test!(Namespace, availability::a_rolling_update_costs_no_request),
        test!(Namespace, availability::scaling_up_and_down_costs_no_request),
        test!(Cluster, availability::a_minute_without_the_api_server_costs_no_request),
        test!(Cluster, availability::the_end_of_control_servers_costs_no_request),
        test!(Cluster, availability::the_end_of_an_agent_costs_no_request),
        test!(Cluster, availability::draining_a_node_costs_no_request),
        test!(Cluster, addresses::an_address_belongs_to_the_pod_that_has_it_now),
        test!(Cluster, admission::what_gets_past_a_dead_webhook_denies_and_says_why),
        test!(Cluster, uninstall::a_new_node_takes_pods_once_its_agent_serves),
        test!(Cluster, uninstall::an_upgrade_costs_no_request),
        test!(Last, uninstall::uninstalling_leaves_nothing),
    ]
}
