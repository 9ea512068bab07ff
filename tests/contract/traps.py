"""The known traps of writing a shim, by their number in the contract: right behaviour, and the tests that pin it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tests.contract.pins import Pin, pin
from tests.contract.traps_io import ENGINE, PYTHON, STDIO

START: Final[Mapping[int, Pin]] = {
    1: pin(
        "The daemon holds nothing of start's stdin, stdout and stderr, whose end containerd waits for.",
        "integration/test_daemonize.py::test_daemon_holds_nothing_of_start",
        "integration/test_frozen.py::test_daemon_holds_nothing_of_start",
        "runtime/test_main.py::test_start_leaves_a_daemon_that_serves",
    ),
    2: pin(
        "A start that succeeds writes its answer and not a byte more, on either output.",
        "integration/test_daemonize.py::test_answer_is_the_plain_address_without_input",
        "runtime/test_main.py::test_start_leaves_a_daemon_that_serves",
    ),
    3: pin(
        "The answer is in the protocol of the input.",
        "runtime/test_bootstrap.py::test_the_answer_is_in_kind",
        "runtime/test_main.py::test_start_answers_bootstrap_params_in_kind",
        "integration/test_daemonize.py::test_bootstrap_params_get_a_bootstrap_result",
    ),
    4: pin(
        "Input is BootstrapParams only when it repeats both id and namespace of the flags.",
        "runtime/test_bootstrap.py::test_params_of_somebody_else_are_the_old_protocol",
        "runtime/test_bootstrap.py::test_an_any_whose_value_looks_like_a_namespace_is_told_apart_by_the_id",
        "runtime/test_bootstrap.py::test_the_new_protocol_counts_only_for_its_own_container",
        "integration/test_daemonize.py::test_params_of_another_container_are_legacy_input",
    ),
    5: pin(
        "Both bootstrap messages are binary protobuf.",
        "runtime/test_bootstrap.py::test_the_answer_is_in_kind",
        "runtime/test_bootstrap.py::test_params_with_our_id_and_namespace_are_the_new_protocol",
        "integration/test_daemonize.py::test_bootstrap_params_get_a_bootstrap_result",
    ),
    6: pin(
        "A legacy caller gets the bare address, never JSON and never a version 3.",
        "integration/test_daemonize.py::test_answer_is_never_json",
        "runtime/test_bootstrap.py::test_the_answer_is_in_kind",
    ),
    7: pin(
        "The folder of sockets is made with mode 0700.",
        "runtime/test_address.py::test_bind_listens_for_its_own_user_alone",
        "integration/test_daemonize.py::test_socket_dir_is_honoured",
    ),
    8: pin(
        "A socket path over 107 bytes is refused in words that name path, length and limit.",
        "runtime/test_address.py::test_bind_of_a_path_that_is_too_long_says_so",
        "integration/test_faults.py::test_socket_path_that_is_too_long",
    ),
    9: pin(
        "The socket of a shim that was killed is found dead by a probe, and replaced.",
        "runtime/test_address.py::test_bind_replaces_the_socket_of_a_dead_shim",
        "runtime/test_address.py::test_binds_at_once_leave_one_listener",
        "integration/test_faults.py::test_socket_of_a_killed_shim",
    ),
    10: pin(
        "The socket goes on every path to the end, a failed start included.",
        "runtime/test_main.py::test_a_start_that_fails_leaves_no_daemon_and_no_socket",
        "runtime/test_main.py::test_a_daemon_that_cannot_be_loaded_says_so_and_goes",
        "runtime/test_main.py::test_shutdown_answers_and_then_ends_the_daemon",
        "engine/test_whole_life.py::test_sigterm_ends_the_daemon_and_leaves_the_container",
        "integration/test_daemonize.py::test_stop_signal_ends_the_daemon_in_good_order",
        "integration/test_lifecycle.py::test_shim_ends_with_its_container",
    ),
    11: pin(
        "A shim that ends has no socket any more before it answers, so no start joins it.",
        "integration/test_contract.py::test_trap_11_no_start_joins_a_shim_that_ends",
        "runtime/test_main.py::test_shutdown_answers_and_then_ends_the_daemon",
        "engine/test_service.py::test_shutdown_ends_an_empty_shim_and_refuses_what_comes_after",
    ),
    12: pin(
        "The daemon's oom_score_adj is one above containerd's, and a thousand at most.",
        "integration/test_daemonize.py::test_daemon_is_a_likelier_oom_victim_than_its_caller",
        "integration/test_contract.py::test_trap_12_the_oom_score_ends_at_a_thousand",
    ),
    13: pin(
        "A start that fails after it has spawned the daemon ends it.",
        "runtime/test_main.py::test_a_start_that_fails_leaves_no_daemon_and_no_socket",
    ),
    14: pin(
        "-info answers without options and with those of another shim, soon, and makes no file.",
        "integration/test_contract.py::test_trap_14_info_answers_whatever_comes_and_makes_no_file",
        "engine/test_shim.py::test_info_answers_whatever_options_come",
        "engine/test_limits.py::test_every_limit_is_generous",
        "integration/test_frozen.py::test_action_leaves_nothing_unpacked",
    ),
}

EVENTS: Final[Mapping[int, Pin]] = {
    15: pin(
        "The exit of a process that ends before Start returns is told.",
        "engine/test_lifecycle.py::test_an_init_that_ends_while_it_is_started",
        "engine/test_lifecycle.py::test_an_init_reaped_just_as_its_start_begins",
        "engine/test_lifecycle.py::test_an_exec_that_ends_while_it_is_started",
        "engine/test_whole_life.py::test_a_container_that_ends_while_it_is_started",
    ),
    16: pin(
        "No lock that exits need is held while the engine runs.",
        "contract/test_order.py::test_trap_16_a_reaper_that_waits_for_no_runtime",
        "engine/test_lifecycle.py::test_an_init_that_ends_while_it_is_created",
    ),
    17: pin(
        "Init's exit waits for every exec that runs or is being started, and no exec starts after it.",
        "engine/test_lifecycle.py::test_an_inits_exit_waits_for_its_execs",
        "engine/test_lifecycle.py::test_an_inits_exit_waits_for_an_exec_that_is_being_started",
        "engine/test_lifecycle.py::test_any_order_of_ends_gives_the_order_that_clients_rely_on",
        "engine/test_lifecycle.py::test_starts_and_ends_in_many_threads_keep_the_order",
        "integration/test_exec.py::test_exec_start_while_init_is_killed",
        "integration/test_exec.py::test_exec_exits_come_before_the_exit_of_init",
    ),
    18: pin(
        "There is one exit for each process, and none for an exec whose start failed.",
        "engine/test_lifecycle.py::test_unknown_pids_are_nobodys",
        "engine/test_whole_process.py::test_a_failed_exec_releases_who_waits",
        "integration/test_exec.py::test_exec_of_a_missing_program",
        "integration/test_exec.py::test_exec_thirty_at_once",
    ),
    19: pin(
        "However short a life, its start is told before its exit.",
        "engine/test_whole_life.py::test_a_container_that_ends_at_once",
        "integration/test_lifecycle.py::test_short_lives_in_a_row",
        "engine/test_lifecycle.py::test_an_init_that_ends_while_it_is_started",
    ),
    20: pin(
        "A container is asked, killed and deleted while the engine is at work for another.",
        "contract/test_order.py::test_trap_20_state_while_another_container_is_created",
        "integration/test_control.py::test_state_is_answered_while_the_runtime_works",
        "engine/test_container.py::test_state_and_kill_of_others_wait_for_no_runtime",
    ),
    21: pin(
        "Events that come while the daemon ends, or after, break nothing.",
        "contract/test_order.py::test_trap_21_an_event_after_the_end_harms_nobody",
        "engine/test_whole_life.py::test_shutdown_ends_the_daemon_once_it_is_empty",
        "runtime/test_publisher.py::test_flush_calls_back_once_everything_has_arrived",
    ),
    22: pin(
        "An id is reserved before anything is done for it, so of several at once one gets it.",
        "engine/test_container.py::test_execs_added_at_once_under_one_id_are_one",
        "engine/test_service.py::test_create_twice_is_refused_before_anything_is_touched",
        "integration/test_faults.py::test_runtime_that_hangs",
    ),
    23: pin(
        "Kill and Delete of what has been deleted answer NOT_FOUND.",
        "engine/test_task.py::test_init_answers_as_gos_does",
        "engine/test_task.py::test_a_process_being_deleted_answers_as_if_it_were",
        "integration/test_refusals.py::test_deletes_at_once",
    ),
    24: pin(
        "Wait ends with its deadline or its client, and nothing of it stays.",
        "engine/test_whole_process.py::test_a_wait_has_a_deadline",
        "engine/test_whole_process.py::test_two_hundred_waits_delay_nobody",
        "engine/test_service.py::test_a_wait_that_nobody_awaits_is_forgotten",
    ),
    25: pin(
        "A failed start of an exec releases who waits for it.",
        "engine/test_container.py::test_an_exec_that_cannot_start_is_released_and_can_be_deleted",
        "engine/test_limits.py::test_an_exec_that_hangs_releases_who_waits",
        "integration/test_refusals.py::test_exec_with_a_fifo_that_is_missing",
    ),
    26: pin(
        "No signal is sent to a pid that has been reaped, even if nobody has heard of that yet.",
        "contract/test_order.py::test_trap_26_an_exec_that_was_reaped_gets_no_signal",
        "contract/test_order.py::test_trap_26_an_exec_that_cannot_be_served_and_has_ended_gets_no_signal",
        "runtime/reaping.py::a_reaped_pid_gets_no_signal",
        "runtime/reaping.py::only_a_child_that_lives_is_killed",
    ),
    27: pin(
        "At init's exit the engine kills the rest only where the pid namespace is not the container's own.",
        "engine/test_lifecycle.py::test_own_pids_need_no_kill",
        "engine/test_lifecycle.py::test_pids_count_as_shared_when_in_doubt",
        "engine/test_bundle.py::test_own_pid_namespace_is_one_made_for_the_container",
    ),
    28: pin(
        "Where pids are shared the rest is killed, and its exits are told before init's.",
        "engine/test_lifecycle.py::test_shared_pids_are_killed_before_the_exit_is_told",
        "engine/test_lifecycle.py::test_execs_that_survive_the_kill_are_waited_for",
        "engine/test_whole_process.py::test_shared_pids_are_killed_with_their_init",
        "integration/test_lifecycle.py::test_children_end_with_init_when_pids_are_shared",
    ),
    29: pin(
        "A paused container is thawed at init's exit, and a container that the engine forgot is NOT_FOUND.",
        "engine/test_lifecycle.py::test_a_paused_container_is_thawed_at_its_inits_end",
        "integration/test_control.py::test_kill_while_paused",
        "contract/test_order.py::test_trap_29_kill_of_a_container_that_the_engine_forgot_is_not_found",
    ),
    30: pin(
        "Kills for memory are watched from creation on, by oom_kill, and told before the exit that they caused.",
        "contract/test_order.py::test_trap_30_a_kill_for_memory_before_the_start_is_told",
        "engine/test_container_memory.py::test_a_kill_for_memory_is_told_before_the_exit_that_it_caused",
        "contract/test_order.py::test_trap_30_a_kill_for_memory_is_told_before_the_exit_even_if_nobody_was_woken",
        "host/test_oom.py::test_read_ignores_wakes_without_a_kill",
        "integration/test_control.py::test_oom_is_told_before_the_exit",
    ),
    31: pin(
        "The watch for kills ends at the exit, that of a container which never ran at its delete.",
        "engine/test_container_memory.py::test_nothing_is_watched_after_the_exit",
        "engine/test_container_memory.py::test_an_early_exit_is_never_watched",
        "contract/test_order.py::test_trap_31_the_watch_of_a_container_that_never_ran_ends_at_its_delete",
    ),
    32: pin(
        "No number of exits at once loses one.",
        "runtime/reaping.py::hundreds_of_exits_at_once_are_all_told",
        "runtime/reaping.py::the_loop_reaps_on_sigchld",
        "integration/test_exec.py::test_exec_thirty_at_once",
    ),
    33: pin(
        "Options may be absent, or empty, wherever there are any.",
        "engine/test_options.py::test_absent_options_are_defaults",
        "engine/test_options.py::test_checkpoint_options_are_taken_whole",
        "engine/test_service.py::test_a_checkpoint_is_told",
        "engine/test_bundle.py::test_no_options_are_told_from_garbled_ones",
    ),
    34: pin(
        "TaskExit.id of init is the container's id.",
        "engine/test_service.py::test_a_life_of_a_container",
        "integration/test_lifecycle.py::test_events_of_a_life",
    ),
    35: pin(
        "State keeps the pid of a process that has ended.",
        "engine/test_whole_life.py::test_a_container_that_ends_at_once",
        "integration/test_lifecycle.py::test_life_by_calls",
    ),
}

LEAKS: Final[Mapping[int, Pin]] = {
    36: pin(
        "A shim ends at a Shutdown that finds no container, not before; a container that could not be made is none.",
        "engine/test_whole_life.py::test_shutdown_ends_the_daemon_once_it_is_empty",
        "integration/test_daemonize.py::test_shutdown_with_a_container_does_nothing",
        "engine/test_whole_life.py::test_a_failed_create_leaves_nothing",
        "integration/test_pod.py::test_failing_create_of_the_only_container_ends_the_shim",
        "integration/test_pod.py::test_pod_shares_one_shim",
    ),
    37: pin(
        "Any Shutdown ends a shim without containers, whomever it names.",
        "engine/test_service.py::test_shutdown_ends_an_empty_shim_and_refuses_what_comes_after",
        "integration/test_examples.py::test_connect_asks_and_ends_our_shim",
    ),
    38: pin(
        "The delete action works by the files of the bundle, and copes without them.",
        "engine/test_whole_life.py::test_delete_cleans_up_after_a_daemon_that_was_killed",
        "integration/test_delete.py::test_delete_action_with_nothing_to_delete",
        "engine/test_shim.py::test_delete_warns_and_succeeds_whatever_is_wrong",
    ),
    39: pin(
        "The delete action tells the pid that is in init.pid.",
        "engine/test_whole_life.py::test_delete_cleans_up_after_a_daemon_that_was_killed",
        "integration/test_delete.py::test_delete_action_after_the_shim_was_killed",
        "integration/test_restart.py::test_killed_shim_leaves_nothing",
    ),
    40: pin(
        "A container whose root stays mounted can be deleted again, and each Delete tries to unmount it.",
        "integration/test_contract.py::test_trap_40_a_delete_whose_unmount_failed_may_be_repeated",
        "engine/test_container.py::test_a_failed_delete_tries_every_step_and_may_be_repeated",
    ),
    41: pin(
        "A busy mount is tried again for a while and never detached lazily.",
        "integration/test_host_mounts.py::test_unmount_recursive_waits_for_a_busy_mount",
        "integration/test_host_mounts.py::test_unmount_recursive_gives_up_on_busy_mounts_in_time",
        "integration/test_contract.py::test_trap_40_a_delete_whose_unmount_failed_may_be_repeated",
    ),
    42: pin(
        "Mounts below the root file system go first, the deepest of them before the others.",
        "integration/test_host_mounts.py::test_unmount_recursive_takes_all_that_is_below",
        "integration/test_host_mounts.py::test_unmount_recursive_takes_what_cannot_even_be_looked_at",
    ),
    43: pin(
        "A failed Create undoes its mounts and stdio, and a container without a cgroup works.",
        "engine/test_container.py::test_a_failed_create_undoes_what_it_did",
        "engine/test_container.py::test_a_mount_that_fails_stops_create_at_once",
        "integration/test_faults.py::test_second_mount_that_fails",
        "engine/test_container.py::test_metrics_of_a_container_without_a_cgroup_are_not_found",
        "engine/test_container_memory.py::test_a_cgroup_that_cannot_be_watched_still_has_numbers",
    ),
    44: pin(
        "Deleting an exec closes its terminal and its stdin.",
        "integration/test_terminal.py::test_terminals_leave_nothing",
        "contract/test_engine_and_io.py::test_rule_8_3_a_hold_ends_with_the_delete",
    ),
    45: pin(
        "An error leaves neither end of a fifo open.",
        "engine/test_stdio.py::test_close_leaves_nothing_open_however_far_it_got",
        "engine/test_stdio.py::test_an_owner_that_is_refused_leaves_nothing_open",
        "engine/test_container.py::test_a_failed_create_undoes_what_it_did",
        "engine/test_console.py::test_close_leaves_nothing_open_however_far_it_got",
    ),
    46: pin(
        "A shim whose container never came answers Pids with NOT_FOUND, by which containerd ends it.",
        "integration/test_empty_shim.py::test_trap_46_a_shim_without_its_container_ends_with_the_next_containerd",
        "engine/test_service.py::test_an_unknown_container_is_not_found",
    ),
    47: pin(
        "Pids of a living container never fails.",
        "engine/test_limits.py::test_processes_are_told_even_if_the_runtime_cannot_list_them",
        "integration/test_restart.py::test_containers_outlive_containerd",
    ),
    48: pin(
        "Draining ends with the output, and before CRI or the request gives up.",
        "contract/test_engine_and_io.py::test_trap_48_no_drain_takes_as_long_as_cri_waits",
        "engine/test_container.py::test_output_is_drained_before_delete_and_no_longer_than_allowed",
        "integration/test_stdio.py::test_background_child_does_not_hang_delete",
    ),
    49: pin(
        "A container that the engine does not know any more, as after a checkpoint that ended it, counts as deleted.",
        "engine/test_runc.py::test_a_container_that_is_gone_counts_as_deleted",
        "engine/test_whole_life.py::test_a_container_goes_on_from_a_checkpoint",
    ),
    50: pin(
        "A logger gets the end of its input, SIGTERM, time, SIGKILL, and is reaped.",
        "engine/test_binary.py::test_a_logger_that_stops_at_the_end_of_its_input_gets_no_signal",
        "engine/test_binary.py::test_a_logger_that_goes_on_gets_sigterm",
        "engine/test_binary.py::test_a_logger_that_ignores_sigterm_is_killed",
        "integration/test_loggers.py::test_ctr_logs_to_a_program",
    ),
}

TRAPS: Final[Mapping[int, Pin]] = MappingProxyType({**START, **EVENTS, **LEAKS, **STDIO, **ENGINE, **PYTHON})
