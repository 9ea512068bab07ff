"""The rules of the Task service that a client could notice, by section of the contract (6), and what pins them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tests.contract.pins import Pin, pin

TASK_RULES: Final[Mapping[str, Pin]] = MappingProxyType(
    {
        "6.1 unknown container": pin(
            "Every method that names a container it does not know answers NOT_FOUND in Go's words.",
            "engine/test_service.py::test_an_unknown_container_is_not_found",
            "integration/test_refusals.py::test_unknown_container",
        ),
        "6.1 unknown exec": pin(
            "An empty exec id is init's, and an unknown one NOT_FOUND by its name.",
            "engine/test_service.py::test_an_unknown_exec_is_not_found",
            "engine/test_container.py::test_an_exec_is_known_by_its_id",
            "integration/test_refusals.py::test_unknown_exec",
        ),
        "6.1 table": pin(
            "A container is known from the success of its Create to that of its Delete.",
            "engine/test_container.py::test_create_enters_the_container_before_it_is_announced",
            "engine/test_service.py::test_a_create_that_makes_no_sense_leaves_no_container",
            "integration/test_contract.py::test_trap_40_a_delete_whose_unmount_failed_may_be_repeated",
        ),
        "6.1 locks": pin(
            "What is asked of one process waits for that process alone.",
            "engine/test_container.py::test_state_and_kill_of_others_wait_for_no_runtime",
            "engine/test_limits.py::test_an_operation_under_way_holds_up_others_until_their_deadline",
            "contract/test_order.py::test_trap_20_state_while_another_container_is_created",
        ),
        "6.1 versions": pin(
            "Task v2 and v3 are one service under two names.",
            "engine/test_service.py::test_both_versions_serve_the_same_methods",
            "engine/test_whole_life.py::test_the_daemon_knows_two_services_and_says_so",
            "integration/test_lifecycle.py::test_both_task_versions_answer",
        ),
        "6.2 init": pin(
            "Every request of init in every state is allowed or refused as in Go's shim, in its words.",
            "engine/test_task.py::test_init_answers_as_gos_does",
            "engine/test_task.py::test_a_step_under_way_answers_as_the_state_before_it",
            "integration/test_control.py::test_paused_container_refuses",
            "integration/test_control.py::test_pause_of_what_does_not_run",
        ),
        "6.2 exec": pin(
            "Every request of an exec in every state is allowed or refused as in Go's shim, in its words.",
            "engine/test_task.py::test_an_exec_answers_as_gos_does",
            "integration/test_exec.py::test_exec_kill",
        ),
        "6.2 status": pin(
            "Each state has the status that clients know, PAUSING while the engine pauses.",
            "engine/test_service.py::test_every_state_of_a_process_has_a_status",
            "engine/test_service.py::test_state_of_a_paused_container_is_its_execs_too",
            "engine/test_container.py::test_state_says_pausing_while_it_is",
        ),
        "6.2 failed exec": pin(
            "An exec whose start failed is not started again, and can be deleted.",
            "engine/test_task.py::test_an_exec_whose_start_failed_can_only_be_deleted",
            "engine/test_container.py::test_an_exec_that_cannot_start_is_released_and_can_be_deleted",
        ),
        "6.3 options": pin(
            "Absent options are defaults, those of another type are refused by name.",
            "engine/test_options.py::test_absent_options_are_defaults",
            "engine/test_options.py::test_what_cannot_be_understood_is_refused_by_name",
            "engine/test_service.py::test_options_reach_the_runtime_and_the_bundle",
        ),
        "6.3 mounts": pin(
            "With mounts rootfs is made and mounted, without any it is left alone; a failure names the mount.",
            "engine/test_container.py::test_create_without_mounts_makes_no_folder",
            "engine/test_container.py::test_a_mount_that_fails_stops_create_at_once",
            "integration/test_faults.py::test_rootfs_whose_source_is_missing",
            "contract/test_engine_and_io.py::test_trap_82_modes_are_what_the_contract_says_whatever_the_umask",
        ),
        "6.3 stdio": pin(
            "Stdio that cannot be made fails Create by the name of what is missing, before the engine is asked.",
            "engine/test_container.py::test_stdio_that_cannot_be_opened_fails_create_before_the_runtime",
            "integration/test_faults.py::test_create_with_a_fifo_that_is_missing",
            "integration/test_faults.py::test_create_with_an_unknown_scheme",
            "engine/test_console.py::test_a_pty_that_does_not_come_is_an_error",
        ),
        "6.3 pid": pin(
            "The pid is what the engine wrote, and its absence fails Create in Go's words.",
            "engine/test_container.py::test_a_create_without_a_pid_fails",
            "engine/test_bundle.py::test_read_pid",
            "engine/test_bundle.py::test_a_pid_file_without_a_pid_is_an_error_that_shows_it",
        ),
        "6.3 checkpoint": pin(
            "From a checkpoint Create runs nothing and answers pid 0; Start restores it.",
            "engine/test_service.py::test_a_container_from_a_checkpoint_has_no_pid_until_it_starts",
            "engine/test_checkpoint.py::test_a_container_from_a_checkpoint_is_made_at_its_start",
        ),
        "6.3 undo": pin(
            "A failed Create undoes what it did, the engine's half-made container included.",
            "engine/test_container.py::test_a_failed_create_undoes_what_it_did",
            "engine/test_limits.py::test_a_create_that_hangs_half_way_is_rolled_back",
            "engine/test_container_trouble.py::test_a_half_made_container_that_stays_is_logged",
            "engine/test_whole_life.py::test_a_failed_create_leaves_nothing",
        ),
        "6.3 twice": pin(
            "A second Create of a living id is ALREADY_EXISTS, before anything is touched.",
            "engine/test_service.py::test_create_twice_is_refused_before_anything_is_touched",
            "integration/test_refusals.py::test_create_twice",
        ),
        "6.3 event": pin(
            "TaskCreate carries bundle, mounts, stdio, checkpoint and pid.",
            "engine/test_service.py::test_a_life_of_a_container",
            "engine/test_service.py::test_a_mount_is_told_with_the_creation",
            "engine/test_service.py::test_a_container_from_a_checkpoint_has_no_pid_until_it_starts",
        ),
        "6.4 init": pin(
            "Start runs init and tells its pid; a failure is in the engine's words and leaves it created.",
            "engine/test_lifecycle.py::test_a_failed_start_leaves_a_created_container",
            "engine/test_whole_life.py::test_a_failed_start_may_be_repeated",
            "integration/test_lifecycle.py::test_life_by_calls",
        ),
        "6.4 restore": pin(
            "A failed restore says so in the engine's words, and may be repeated.",
            "engine/test_whole_life.py::test_a_restore_that_fails_may_be_repeated",
            "engine/test_checkpoint.py::test_a_restore_that_fails_half_way_removes_what_it_made",
        ),
        "6.4 exec": pin(
            "An exec is not started once init was reaped, which is FAILED_PRECONDITION in Go's words.",
            "engine/test_lifecycle.py::test_an_inits_exit_waits_for_its_execs",
            "integration/test_exec.py::test_exec_after_the_exit_of_init",
        ),
        "6.4 failed exec": pin(
            "A failed start of an exec is told in the engine's words and by no exit.",
            "integration/test_exec.py::test_exec_of_a_missing_program",
            "engine/test_container_trouble.py::test_an_exec_without_its_stdio_is_killed",
        ),
        "6.5 drain": pin(
            "Delete waits for the rest of the output, within its limit and the request's deadline.",
            "engine/test_container.py::test_output_is_drained_before_delete_and_no_longer_than_allowed",
            "engine/test_whole_process.py::test_stdio_comes_through",
            "integration/test_stdio.py::test_file_log_keeps_the_order",
            "integration/test_stdio.py::test_background_child_does_not_hang_delete",
        ),
        "6.5 steps": pin(
            "Each step is tried although one before it failed, the first failure is told, and all may be tried again.",
            "engine/test_container.py::test_a_failed_delete_tries_every_step_and_may_be_repeated",
            "integration/test_contract.py::test_trap_40_a_delete_whose_unmount_failed_may_be_repeated",
        ),
        "6.5 gone": pin(
            "An engine that does not know the container has deleted it.",
            "engine/test_runc.py::test_a_container_that_is_gone_counts_as_deleted",
            "contract/test_order.py::test_trap_29_kill_of_a_container_that_the_engine_forgot_is_not_found",
        ),
        "6.5 never started": pin(
            "Deleting what was created kills it: 137, its exit, then its deletion.",
            "engine/test_container.py::test_delete_of_a_created_container_waits_for_its_exit",
            "engine/test_container_trouble.py::test_an_init_that_does_not_die_fails_its_delete",
            "integration/test_lifecycle.py::test_delete_of_a_container_never_started",
        ),
        "6.5 answer": pin(
            "Pid, status and time are those of the exit; TaskDelete has no id.",
            "engine/test_service.py::test_a_life_of_a_container",
            "integration/test_lifecycle.py::test_events_of_a_life",
        ),
        "6.5 exec": pin(
            "Deleting an exec removes its pid file and its id, and is no event.",
            "engine/test_container.py::test_delete_of_an_exec_removes_its_pid_file",
            "engine/test_service.py::test_a_life_of_an_exec",
            "integration/test_exec.py::test_exec_id_is_free_after_delete",
        ),
        "6.6 reservation": pin(
            "An id in use is ALREADY_EXISTS, also among calls at the same time.",
            "engine/test_container.py::test_execs_added_at_once_under_one_id_are_one",
            "integration/test_exec.py::test_exec_id_in_use",
        ),
        "6.6 spec": pin(
            "A spec that is no process is refused and its id stays free; the request's terminal replaces the spec's.",
            "engine/test_service.py::test_exec_spec_that_is_none_is_refused",
            "engine/test_service.py::test_exec_spec_has_the_terminal_that_was_asked_for",
            "integration/test_refusals.py::test_exec_whose_spec_is_no_process",
        ),
        "6.6 event": pin(
            "Registering runs nothing and is told by exec-added.",
            "engine/test_service.py::test_a_life_of_an_exec",
            "engine/test_container.py::test_an_exec_is_known_by_its_id",
        ),
        "6.7 fields": pin(
            "State tells id, bundle, pid, stdio and exit, Go's zero time before it, and no exec id.",
            "engine/test_service.py::test_a_life_of_a_container",
            "engine/test_service.py::test_timestamp_of_nothing_is_gos_zero_time",
            "engine/test_whole_process.py::test_stdio_comes_through",
            "integration/test_exec.py::test_exec_life_by_calls",
        ),
        "6.7 at once": pin(
            "State is answered from what is known, whatever goes on.",
            "engine/test_container.py::test_state_and_kill_of_others_wait_for_no_runtime",
            "engine/test_service.py::test_both_versions_serve_the_same_methods",
            "integration/test_control.py::test_state_is_answered_while_the_runtime_works",
        ),
        "6.8 pause and resume": pin(
            "Each is an event once it is done; a failure is told in the engine's words and changes nothing.",
            "engine/test_container.py::test_pause_and_resume",
            "engine/test_container.py::test_a_failed_pause_or_resume_changes_nothing",
            "engine/test_limits.py::test_a_pause_that_hangs_is_taken_back",
            "integration/test_control.py::test_pause_and_resume",
        ),
        "6.9 init": pin(
            "A signal for init is the engine's to send, in every state but deleted, signal 0 and `all` included.",
            "engine/test_container.py::test_kill_of_init_is_the_runtimes",
            "engine/test_service.py::test_kill_and_update_reach_the_runtime",
            "integration/test_control.py::test_kill_all",
        ),
        "6.9 exec": pin(
            "A signal for an exec goes to its pid, never to one that has been reaped.",
            "engine/test_container.py::test_kill_of_an_exec_needs_no_runtime",
            "contract/test_order.py::test_trap_26_an_exec_that_was_reaped_gets_no_signal",
            "integration/test_exec.py::test_exec_kill",
        ),
        "6.9 errors": pin(
            "What is said of a process that is gone becomes NOT_FOUND, all else UNKNOWN with its text.",
            "engine/test_runc.py::test_kill_error_maps_what_runtimes_say",
            "engine/test_runc.py::test_kill_maps_failures_and_lets_successes_be",
            "engine/test_container_trouble.py::test_a_kill_that_the_system_refuses_says_so",
            "integration/test_lifecycle.py::test_kill_after_the_end",
        ),
        "6.10 list": pin(
            "All pids on the host are listed, those of execs with their ids under a bare type name.",
            "engine/test_service.py::test_pids_name_the_execs",
            "integration/test_control.py::test_pids",
        ),
        "6.10 none": pin(
            "A stopped container has no processes, which is no failure, and one that is being deleted neither.",
            "contract/test_engine_and_io.py::test_rule_6_10_no_process_is_listed_while_a_stopped_container_is_deleted",
            "integration/test_control.py::test_pids_of_what_does_not_run",
        ),
        "6.10 never fails": pin(
            "A living container's list is never a failure.",
            "engine/test_limits.py::test_processes_are_told_even_if_the_runtime_cannot_list_them",
        ),
        "6.11 end": pin(
            "The process sees the end of its input once CloseIO has come and the last client has gone.",
            "engine/test_stdio.py::test_input_ends_only_after_close_io_and_the_last_writer",
            "integration/test_stdio.py::test_close_io_waits_for_the_client",
        ),
        "6.11 any time": pin(
            "It may be repeated, come without stdin, and come before there is any.",
            "engine/test_service.py::test_requests_about_stdio_are_fine_without_any",
            "engine/test_stdio.py::test_close_io_before_there_is_stdio_is_remembered",
            "contract/test_engine_and_io.py::test_rule_6_11_close_io_closes_whatever_its_flag_says",
        ),
        "6.12 resize": pin(
            "The terminal gets 16 bits of each size; a process without one takes any.",
            "engine/test_console.py::test_resize_reaches_the_terminal",
            "integration/test_terminal.py::test_resize_without_a_terminal",
            "integration/test_terminal.py::test_resize_of_an_exec",
        ),
        "6.13 exit": pin(
            "Any number of waits, at any time, are answered with the exit, no later than its event.",
            "engine/test_service.py::test_wait_is_answered_with_the_exit",
            "engine/test_lifecycle.py::test_a_wait_that_came_before_anything_is_released_with_the_exit",
            "integration/test_lifecycle.py::test_many_waiters_leave_room_for_calls",
        ),
        "6.13 deadline": pin(
            "A wait ends with its deadline or its client.",
            "engine/test_whole_process.py::test_a_wait_has_a_deadline",
            "engine/test_service.py::test_a_wait_that_nobody_awaits_is_forgotten",
        ),
        "6.13 never ran": pin(
            "A wait for what never ran is released: with zeros after a failed start, with NOT_FOUND after a delete.",
            "engine/test_service.py::test_wait_for_an_exec_that_never_runs_is_released",
            "engine/test_service.py::test_wait_for_a_container_that_is_never_restored_is_released",
            "engine/test_container.py::test_delete_releases_who_waits_for_an_exec_that_never_ran",
        ),
        "6.14 update": pin(
            "The resources reach the engine as they came; its words are the error, and there is no event.",
            "engine/test_runc.py::test_resources_arrive_on_stdin",
            "engine/test_runc.py::test_a_failed_update_says_what_runc_said",
            "integration/test_control.py::test_update",
            "integration/test_control.py::test_update_that_makes_no_sense",
        ),
        "6.15 checkpoint": pin(
            "Options may be absent, the work folder goes, and the event names the folder.",
            "engine/test_checkpoint.py::test_a_checkpoint_is_announced_and_its_work_removed",
            "engine/test_checkpoint.py::test_a_working_folder_that_the_client_named_stays",
            "engine/test_service.py::test_a_checkpoint_is_told",
        ),
        "6.15 failure": pin(
            "A failure is one line that says where CRIU's log has been kept.",
            "engine/test_checkpoint.py::test_a_failed_checkpoint_says_where_crius_log_is",
            "integration/test_control.py::test_checkpoint_without_criu_says_so",
        ),
        "6.16 message": pin(
            "Stats is containerd's message for the cgroup's version, under its bare name.",
            "engine/test_container_memory.py::test_stats_are_containerds_message_for_the_cgroups_version",
            "integration/test_control.py::test_stats",
            "integration/test_control.py::test_stats_by_ctr",
        ),
        "6.16 without": pin(
            "No cgroup is NOT_FOUND, one that is gone has zeros.",
            "engine/test_service.py::test_stats_without_a_cgroup_are_not_found",
            "integration/test_host_cgroup.py::test_metrics_of_a_removed_cgroup_are_zero",
            "host/test_cgroup_v1.py::test_metrics_of_a_cgroup_that_is_gone",
        ),
        "6.17 connect": pin(
            "Connect never fails and tells both pids, 0 for a container that it does not know.",
            "engine/test_service.py::test_connect_and_shutdown_know_no_unknown_container",
            "integration/test_control.py::test_connect_of_an_unknown_container",
        ),
        "6.18 with containers": pin(
            "Shutdown does nothing while there is a container, or one is being made.",
            "engine/test_service.py::test_shutdown_waits_for_a_create_under_way",
            "integration/test_lifecycle.py::test_shutdown_with_containers_does_nothing",
        ),
        "6.18 without": pin(
            "Else it is answered and the shim ends, with all events out; it may be repeated.",
            "engine/test_whole_life.py::test_shutdown_ends_the_daemon_once_it_is_empty",
            "engine/test_service.py::test_shutdown_ends_an_empty_shim_and_refuses_what_comes_after",
        ),
        "6.19 messages": pin(
            "Each event has its topic and the fields of its message.",
            "engine/test_service.py::test_a_life_of_a_container",
            "engine/test_service.py::test_a_life_of_an_exec",
            "runtime/test_publisher.py::test_any_message_may_be_published",
            "integration/test_lifecycle.py::test_events_of_a_life",
        ),
        "6.19 order": pin(
            "Whatever the order of ends, the order of events is the one that clients rely on.",
            "engine/test_lifecycle.py::test_any_order_of_ends_gives_the_order_that_clients_rely_on",
            "integration/test_exec.py::test_exec_start_while_init_is_killed",
            "integration/test_control.py::test_oom_is_told_before_the_exit",
        ),
        "6.19 once": pin(
            "There is one exit for a process, also without a start where init died before it.",
            "engine/test_lifecycle.py::test_an_init_that_ends_while_it_is_created",
            "engine/test_lifecycle.py::test_unknown_pids_are_nobodys",
            "integration/test_lifecycle.py::test_kill_of_a_container_never_started",
        ),
        "6.20 early exits": pin(
            "An exit that comes before the pid is known is neither lost nor told before the start.",
            "engine/test_lifecycle.py::test_an_exec_that_ends_while_it_is_started",
            "engine/test_lifecycle.py::test_an_init_reaped_just_as_its_start_begins",
            "runtime/reaping.py::orphans_go_to_the_windows_and_the_listener",
        ),
        "6.20 used pids": pin(
            "A pid that was used again belongs to its new process alone.",
            "engine/test_lifecycle.py::test_containers_are_told_apart_by_more_than_pid",
        ),
    }
)
