"""The rules of exits, memory, the delete action and containerd (contract 9 to 12), and what pins them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tests.contract.pins import Pin, pin

AROUND_RULES: Final[Mapping[str, Pin]] = MappingProxyType(
    {
        "9.1 all of them": pin(
            "Several exits may come with one signal, and none of them is lost.",
            "runtime/reaping.py::the_loop_reaps_on_sigchld",
            "runtime/reaping.py::hundreds_of_exits_at_once_are_all_told",
        ),
        "9.1 to whom": pin(
            "An exit goes to whom it concerns; that of an unknown process is consumed, a stop is none.",
            "runtime/reaping.py::each_child_gets_its_own_exit",
            "runtime/reaping.py::orphans_go_to_the_windows_and_the_listener",
            "runtime/reaping.py::stopped_and_continued_is_no_exit",
            "engine/test_lifecycle.py::test_unknown_pids_are_nobodys",
        ),
        "9.1 conflicts": pin(
            "Nobody else waits for children.",
            "contract/test_python.py::test_trap_76_nobody_but_the_reaper_waits_for_children",
        ),
        "9.1 children": pin(
            "Children start with default signals and an empty mask.",
            "runtime/reaping.py::a_spawned_child_starts_clean",
        ),
        "9.1 dead pids": pin(
            "The pid of an exited process stays in State and gets no signal.",
            "integration/test_lifecycle.py::test_life_by_calls",
            "contract/test_order.py::test_trap_26_an_exec_that_was_reaped_gets_no_signal",
        ),
        "9.2 codes": pin(
            "An exit code is what it was, a signal 128 more than its number.",
            "runtime/reaping.py::signals_count_from_128",
            "integration/test_lifecycle.py::test_exit_codes_of_execs",
            "integration/test_lifecycle.py::test_exit_by_signal",
        ),
        "9.3 paused": pin(
            "A container whose init dies while paused is thawed first.",
            "engine/test_lifecycle.py::test_a_paused_container_is_thawed_at_its_inits_end",
            "integration/test_control.py::test_kill_while_paused",
        ),
        "9.4 kill all": pin(
            "Where pids are shared, or nobody can tell, the engine kills the rest between init's exit and its event.",
            "engine/test_lifecycle.py::test_shared_pids_are_killed_before_the_exit_is_told",
            "engine/test_lifecycle.py::test_pids_count_as_shared_when_in_doubt",
            "engine/test_lifecycle.py::test_a_kill_that_fails_holds_nothing_up",
            "integration/test_lifecycle.py::test_children_end_with_init_when_pids_are_shared",
        ),
        "10.1 version 1": pin(
            "A kill is counted in the memory cgroup, and its removal is none.",
            "integration/test_host_cgroup.py::test_a_kill_is_told_while_it_is_watched",
            "integration/test_host_cgroup.py::test_an_exit_without_a_kill_is_none",
            "integration/test_control.py::test_oom_is_told_before_the_exit",
        ),
        "10.2 version 2": pin(
            "oom_kill counts, from zero, with a last look before the exit.",
            "host/test_oom.py::test_read_counts_new_kills_once",
            "host/test_oom.py::test_read_ignores_wakes_without_a_kill",
            "host/test_oom.py::test_read_counts_a_kill_from_before_the_watch",
            "host/test_oom.py::test_final_read_tells_what_no_wake_told",
            "host/test_oom.py::test_read_of_a_cgroup_that_is_gone_is_quiet",
        ),
        "10.3 order": pin(
            "A kill is told before the exit that it caused, one of a child or exec while the container lives.",
            "contract/test_order.py::test_trap_30_a_kill_for_memory_is_told_before_the_exit_even_if_nobody_was_woken",
            "engine/test_container_memory.py::test_a_kill_for_memory_is_told_before_the_exit_that_it_caused",
            "engine/test_container_memory.py::test_a_kill_for_memory_is_told",
            "contract/test_order.py::test_trap_30_a_kill_for_memory_before_the_start_is_told",
        ),
        "10.4 version 1": pin(
            "Every field has its file, no limit is 0, and a file that is missing is none.",
            "host/test_cgroup_v1.py::test_metrics_build_the_message",
            "host/test_cgroup_v1.py::test_metrics_survive_any_one_file_going",
            "host/test_cgroup_v1.py::test_metrics_of_block_devices_prefer_the_scheduler_s",
        ),
        "10.4 version 2": pin(
            "Every field has its file, and a file that is missing is none.",
            "host/test_cgroup_v2.py::test_metrics_build_the_message",
            "host/test_cgroup_v2.py::test_metrics_survive_any_one_file_going",
            "host/test_cgroup_v2.py::test_metrics_without_files_are_empty",
        ),
        "10.4 hosts": pin(
            "A hybrid host counts as version 1, and a dead process has no cgroup.",
            "host/test_cgroup.py::test_find_on_a_hybrid_host",
            "host/test_cgroup.py::test_find_on_a_unified_host",
            "host/test_cgroup.py::test_find_never_answers_with_the_root",
            "integration/test_host_cgroup.py::test_metrics_are_the_kernel_s",
        ),
        "11 kills": pin(
            "It kills and removes by the files of the bundle and unmounts; pid and 137 are the answer.",
            "engine/test_whole_life.py::test_delete_cleans_up_after_a_daemon_that_was_killed",
            "engine/test_shim.py::test_delete_kills_what_is_left",
            "integration/test_delete.py::test_delete_action_after_the_shim_was_killed",
        ),
        "11 never fatal": pin(
            "Whatever is missing or garbled it succeeds, with a warning where something is left.",
            "engine/test_shim.py::test_delete_warns_and_succeeds_whatever_is_wrong",
            "integration/test_delete.py::test_delete_action_with_nothing_to_delete",
        ),
        "11 silence": pin(
            "With nothing to do it says nothing and runs no engine.",
            "engine/test_shim.py::test_delete_of_nothing_succeeds_in_silence",
            "integration/test_frozen.py::test_delete_of_a_container_that_never_was",
        ),
        "11 others": pin(
            "It touches nothing of a shim that serves others of the group.",
            "integration/test_contract.py::test_rule_11_deletes_at_once_beside_a_shim_of_the_pod",
            "integration/test_pod.py::test_pod_shares_one_shim",
        ),
        "11 concurrency": pin(
            "It may be repeated, and run several times at once.",
            "integration/test_contract.py::test_rule_11_deletes_at_once_after_the_shim_was_killed",
            "integration/test_delete.py::test_delete_action_after_the_shim_was_killed",
        ),
        "11 five seconds": pin(
            "It is done before containerd's patience ends.",
            "integration/test_delete.py::test_delete_action_during_a_create_that_hangs",
            "integration/test_host_mounts.py::test_unmount_recursive_gives_up_on_busy_mounts_in_time",
        ),
        "12.1 state": pin(
            "State and Connect are answered within their two and five seconds, whatever the engine does.",
            "contract/test_order.py::test_trap_20_state_while_another_container_is_created",
            "engine/test_whole_process.py::test_two_hundred_waits_delay_nobody",
            "integration/test_faults.py::test_runtime_that_hangs",
        ),
        "12.1 deadlines": pin(
            "A deadline of a client is answered in time, and the work goes on or is rolled back.",
            "engine/test_limits.py::test_the_callers_deadline_is_a_limit_too",
            "engine/test_whole_life.py::test_a_client_that_goes_during_create_leaves_a_container",
            "integration/test_faults.py::test_runtime_that_hangs",
        ),
        "12.2 failure": pin(
            "After a failed Create containerd's Delete, Shutdown and delete leave nothing but the rest of the pod.",
            "integration/test_pod.py::test_failing_create_of_the_only_container_ends_the_shim",
            "integration/test_pod.py::test_failing_create_leaves_the_pod_alone",
            "integration/test_faults.py::test_missing_command",
        ),
        "12.2 success": pin(
            "Connect tells the pid that the client sees.",
            "integration/test_lifecycle.py::test_life_by_calls",
            "integration/test_lifecycle.py::test_life_by_ctr",
        ),
        "12.2 fallback": pin(
            "A service that is not there is UNIMPLEMENTED, by which containerd tries the other version.",
            "engine/test_whole_life.py::test_the_daemon_knows_two_services_and_says_so",
            "ttrpc/test_service.py::test_find_answers_unimplemented_in_the_words_that_containerd_expects",
        ),
        "12.3 calls": pin(
            "Each of a client's calls, with the State that containerd asks before, works through containerd.",
            "integration/test_lifecycle.py::test_life_by_ctr",
            "integration/test_exec.py::test_exec_kill_by_ctr",
            "integration/test_control.py::test_pids_by_ctr",
            "integration/test_control.py::test_stats_by_ctr",
            "integration/test_terminal.py::test_size_follows_the_terminal",
        ),
        "12.4 delete": pin(
            "NOT_FOUND goes on, another error keeps the task, which can then be deleted.",
            "integration/test_refusals.py::test_deletes_at_once",
            "integration/test_contract.py::test_trap_40_a_delete_whose_unmount_failed_may_be_repeated",
        ),
        "12.5 shim's death": pin(
            "Exit 137 and the deletion are told for each container of a shim that was killed, and nothing is left.",
            "integration/test_restart.py::test_killed_shim_leaves_nothing",
            "integration/test_restart.py::test_killed_shim_of_a_pod_leaves_nothing",
            "integration/test_restart.py::test_killed_shim_ends_an_attached_run",
            "integration/test_restart.py::test_shim_killed_at_any_moment",
        ),
        "12.6 restart": pin(
            "Containers, stdio, execs and events outlive containerd.",
            "integration/test_restart.py::test_containers_outlive_containerd",
            "integration/test_restart.py::test_exec_outlives_containerd",
            "integration/test_restart.py::test_events_flow_after_a_restart",
            "integration/test_events.py::test_ten_thousand_events_through_five_restarts",
        ),
        "12.6 leaked shims": pin(
            "A shim that is empty, has died, or holds what has ended goes with the next containerd.",
            "integration/test_empty_shim.py::test_trap_46_a_shim_without_its_container_ends_with_the_next_containerd",
            "integration/test_restart.py::test_shim_killed_while_containerd_is_down",
            "integration/test_restart.py::test_exit_while_containerd_is_down",
        ),
        "12.7 pods": pin(
            "A pod has one shim by either annotation, whichever of its containers was first or ends first.",
            "integration/test_pod.py::test_pod_shares_one_shim",
            "integration/test_pod.py::test_pod_takes_new_containers_after_its_leader",
            "integration/test_pod.py::test_group_annotation_wins_over_sandbox",
            "integration/test_pod.py::test_containers_started_at_once_share_one_shim",
        ),
        "12.7 execs": pin(
            "Execs come and go without leaving a descriptor, a thread or an id.",
            "integration/test_stdio.py::test_no_descriptor_is_left",
            "integration/test_terminal.py::test_terminals_leave_nothing",
            "integration/test_exec.py::test_exec_id_is_free_after_delete",
            "ttrpc/test_pool.py::test_idle_threads_end_after_their_time",
        ),
    }
)
