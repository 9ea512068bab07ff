"""The rules of the runc engine and of stdio that a client could notice (contract 7 and 8), and what pins them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tests.contract.pins import Pin, pin

ENGINE_RULES: Final[Mapping[str, Pin]] = MappingProxyType(
    {
        "7.1 words": pin(
            "Every call begins with binary, root with the namespace, and log; --systemd-cgroup by the options alone.",
            "engine/test_runc.py::test_global_arguments_have_defaults",
            "engine/test_runc.py::test_every_call_has_its_words",
            "engine/test_runc.py::test_options_become_words",
        ),
        "7.1 surroundings": pin(
            "An engine runs in /, without NOTIFY_SOCKET and with no descriptor but its stdio.",
            "runtime/reaping.py::a_spawned_child_starts_clean",
            "contract/test_engine_and_io.py::test_trap_79_the_first_bundle_goes_while_the_shim_lives",
            "contract/test_engine_and_io.py::test_rule_7_1_a_runtime_has_no_descriptor_of_the_shim",
        ),
        "7.1 end": pin(
            "No engine call that outlives the daemon makes a container that nobody knows.",
            "integration/test_delete.py::test_delete_action_during_a_create",
            "integration/test_delete.py::test_delete_action_during_a_create_that_hangs",
        ),
        "7.2 subcommands": pin(
            "Each call has its words in runc's order.",
            "engine/test_runc.py::test_every_call_has_its_words",
            "engine/test_runc.py::test_a_checkpoint_and_its_restore_have_their_words",
        ),
        "7.2 stdio": pin(
            "create, exec and restore pass the container's stdio on, all other output is captured.",
            "engine/test_runc.py::test_a_container_gets_the_descriptors_it_was_given",
            "engine/test_runc.py::test_output_is_told_where_the_log_has_nothing",
        ),
        "7.2 exit": pin(
            "An engine's exit comes through the reaper, with all of its output.",
            "runtime/reaping.py::each_child_gets_its_own_exit",
            "engine/test_call.py::test_run_captured_takes_much_in_and_out",
            "engine/test_call.py::test_output_that_another_process_keeps_open_holds_up_nothing",
        ),
        "7.2 process file": pin(
            "The spec of an exec is a file that its owner alone can read, and that is gone afterwards.",
            "engine/test_runc.py::test_an_exec_spec_is_seen_by_its_owner_alone",
            "engine/test_runc.py::test_the_spec_file_is_gone_after_a_failure",
        ),
        "7.2 ps": pin(
            "null and arrays in any layout are lists of pids.",
            "engine/test_runc.py::test_processes_are_read_as_runc_and_crun_print_them",
        ),
        "7.3 text": pin(
            "A failure is the last error of the engine's log behind Go's prefix, else what the call said.",
            "engine/test_runc.py::test_a_failure_is_told_in_the_runtimes_words",
            "integration/test_faults.py::test_runtime_that_fails",
            "integration/test_faults.py::test_runtime_that_fails_without_a_word",
        ),
        "7.3 missing engine": pin(
            "An engine that is not there is named in Go's words.",
            "engine/test_runc.py::test_a_missing_runtime_is_named",
            "engine/test_runc.py::test_a_missing_runtime_fails_calls_without_a_log_too",
            "integration/test_faults.py::test_missing_runtime",
        ),
        "7.3 clients' words": pin(
            "What runc says of a missing or unusable program reaches the client unchanged.",
            "integration/test_faults.py::test_missing_command",
            "integration/test_exec.py::test_exec_of_a_missing_program_by_ctr",
        ),
        "7.4 checkpoint and restore": pin(
            "Each option has its word, and only those that are set are said.",
            "engine/test_runc.py::test_a_checkpoint_and_its_restore_have_their_words",
            "engine/test_whole_life.py::test_a_container_goes_on_from_a_checkpoint",
        ),
        "7.5 options": pin(
            "runc's options are taken whole under any prefix of their type.",
            "engine/test_options.py::test_runcs_options_are_taken_whole",
            "engine/test_options.py::test_options_of_old_clients_are_taken_too",
            "engine/test_service.py::test_options_reach_the_runtime_and_the_bundle",
        ),
        "7.5 tables": pin(
            "CRI's table of options is read from the message, else from the file that it names.",
            "engine/test_options.py::test_a_table_in_the_options_is_read",
            "engine/test_options.py::test_a_file_named_in_the_options_is_read",
        ),
        "7.5 owner of stdio": pin(
            "The container's ends of its pipes belong to io_uid and io_gid.",
            "contract/test_engine_and_io.py::test_rule_7_5_stdio_belongs_to_whom_the_options_of_create_say",
            "engine/test_stdio.py::test_the_processs_ends_belong_to_who_is_asked",
            "engine/test_binary.py::test_pipes_belong_to_whom_the_options_say",
        ),
        "7.5 files": pin(
            "options.json and runtime hold what Go's shim leaves there, for root alone.",
            "engine/test_bundle.py::test_options_come_back_as_they_were",
            "engine/test_options.py::test_to_json_names_only_what_is_set",
            "contract/test_engine_and_io.py::test_trap_82_modes_are_what_the_contract_says_whatever_the_umask",
        ),
        "7.6 options": pin(
            "Words of fstab are flags, loop is a device, all else is data; what is for others is refused by name.",
            "host/test_mount_options.py::test_parse_options_takes_words_apart",
            "host/test_mount_options.py::test_parse_options_refuses_what_is_not_for_the_kernel",
            "integration/test_host_mounts.py::test_loop_mounts_an_image_and_lets_it_go",
        ),
        "7.6 sequence": pin(
            "A read-only bind takes a second call, which keeps what a user namespace may not drop.",
            "integration/test_host_mounts.py::test_read_only_bind_refuses_writing",
            "integration/test_host_mounts.py::test_read_only_bind_in_a_user_namespace_keeps_locked_flags",
            "integration/test_host_mounts.py::test_remount_changes_data_and_is_not_undone",
        ),
        "7.6 targets": pin(
            "A target is found inside the root file system, wherever links lead.",
            "integration/test_host_mounts.py::test_mounts_go_to_their_targets_inside",
            "host/test_mount.py::test_resolve_inside_stays_inside",
            "host/test_mount.py::test_resolve_inside_never_leaves",
        ),
        "7.6 pages": pin(
            "Overlay options of more than a page are shortened, or refused.",
            "integration/test_host_mounts.py::test_overlay_with_more_than_a_page_of_layers",
            "integration/test_host_mounts.py::test_overlay_whose_layers_never_fit",
        ),
        "7.6 id maps": pin(
            "uidmap and gidmap map the ids of a bind, or of the layers of an overlay; the mount for that goes again.",
            "host/test_mount_options.py::test_parse_options_reads_the_maps_of_ids",
            "integration/test_host_idmap.py::test_bind_shows_mapped_owners",
            "integration/test_host_idmap.py::test_overlay_shows_mapped_owners_of_all_layers",
            "integration/test_host_idmap.py::test_an_overlay_that_fails_leaves_nothing",
            "integration/test_user_namespaces.py::test_a_container_in_a_user_namespace_owns_its_files",
            "integration/test_user_namespaces.py::test_delete_action_unmounts_mapped_layers",
        ),
        "7.6 FUSE": pin(
            "fuse and fuse3 types are mounted by their helper, whose words are told when it fails.",
            "contract/test_fuse.py::test_trap_70_a_mount_helper_is_waited_for_by_the_reaper",
            "contract/test_fuse.py::test_rule_7_6_a_helper_that_fails_is_told_in_its_own_words",
            "contract/test_fuse.py::test_rule_7_6_a_helper_that_is_missing_or_hangs_is_named",
            "integration/test_contract.py::test_trap_70_a_root_that_a_helper_mounts",
        ),
        "7.6 failure": pin(
            "The failure of one mount undoes the others in reverse.",
            "integration/test_host_mounts.py::test_a_failure_leaves_nothing",
            "integration/test_host_mounts.py::test_a_failure_of_the_second_step_leaves_nothing",
            "integration/test_host_mounts.py::test_a_failure_tells_what_could_not_be_undone",
        ),
        "7.6 unmounting": pin(
            "All at and below rootfs goes, the longest path first, with patience for what is busy; nothing is success.",
            "integration/test_host_mounts.py::test_unmount_recursive_takes_all_that_is_below",
            "integration/test_host_mounts.py::test_unmount_recursive_waits_for_a_busy_mount",
            "integration/test_host_mounts.py::test_unmount_recursive_gives_up_on_busy_mounts_in_time",
            "host/test_mount.py::test_unmount_recursive_of_a_missing_path_is_success",
        ),
        "8.1 modes": pin(
            "The scheme of stdout decides, and one that is unknown is refused by name.",
            "engine/test_stdio.py::test_scheme_of",
            "engine/test_stdio.py::test_an_unknown_scheme_is_refused_by_name",
            "integration/test_faults.py::test_create_with_an_unknown_scheme",
        ),
        "8.1 null": pin(
            "Without any path the process has /dev/null, for writing too.",
            "engine/test_stdio.py::test_nothing_wanted_is_nothing_given",
            "integration/test_stdio.py::test_null_io",
        ),
        "8.2 outputs": pin(
            "Each output goes to its own fifo, whose reader is waited for and whose end follows the process's.",
            "engine/test_stdio.py::test_output_goes_to_its_own_fifo_and_ends_with_the_process",
            "engine/test_stdio.py::test_open_waits_for_the_clients_reader",
            "integration/test_stdio.py::test_outputs_are_apart",
            "integration/test_stdio.py::test_large_output_on_both",
        ),
        "8.2 clients go": pin(
            "A client or containerd that goes breaks nothing, and output waits for the next.",
            "engine/test_stdio.py::test_output_survives_a_client_that_goes_and_one_that_comes",
            "integration/test_stdio.py::test_reader_leaves_and_another_comes",
            "integration/test_stdio.py::test_detached_output_holds_up_nothing",
        ),
        "8.2 names go": pin(
            "A fifo whose name is removed meanwhile is held all the same.",
            "engine/test_stdio.py::test_a_fifo_whose_name_goes_is_held_all_the_same",
        ),
        "8.2 plain files": pin(
            "What is no fifo is appended to and not made; one file for both outputs is opened once.",
            "engine/test_stdio.py::test_plain_files_are_appended_to_but_not_made",
            "engine/test_stdio.py::test_a_plain_file_for_both_outputs_is_opened_once",
            "engine/test_stdio.py::test_input_may_be_a_plain_file",
        ),
        "8.2 one output": pin(
            "An empty path is /dev/null.",
            "engine/test_stdio.py::test_only_what_is_wanted_has_a_pipe",
            "integration/test_stdio.py::test_one_output_only",
        ),
        "8.2 broken sinks": pin(
            "What cannot be written is drained.",
            "engine/test_pump.py::test_a_sink_that_breaks_is_drained",
            "engine/test_pump.py::test_a_disk_that_is_full_is_drained",
            "engine/test_stdio.py::test_a_process_that_closes_its_stdin_breaks_nothing",
        ),
        "8.2 background": pin(
            "A child that holds the pipe delays Delete for so long only.",
            "integration/test_stdio.py::test_background_child_does_not_hang_delete",
            "integration/test_stdio.py::test_background_child_of_init_does_not_hang_delete",
        ),
        "8.3 hold": pin(
            "A client that detaches ends no input; CloseIO and the last writer do, and Delete ends the hold.",
            "engine/test_stdio.py::test_input_ends_only_after_close_io_and_the_last_writer",
            "engine/test_console.py::test_a_client_may_leave_and_another_come",
            "contract/test_engine_and_io.py::test_rule_8_3_a_hold_ends_with_the_delete",
            "integration/test_stdio.py::test_close_io_ends_the_input",
        ),
        "8.4 exit": pin(
            "The exit is told whether or not output is still under way.",
            "engine/test_stdio.py::test_output_goes_to_its_own_fifo_and_ends_with_the_process",
            "integration/test_stdio.py::test_detached_output_holds_up_nothing",
        ),
        "8.4 drain": pin(
            "Draining ends with the output, below CRI's ten seconds and the request's deadline.",
            "contract/test_engine_and_io.py::test_trap_48_no_drain_takes_as_long_as_cri_waits",
            "engine/test_container.py::test_output_is_drained_before_delete_and_no_longer_than_allowed",
        ),
        "8.5 socket": pin(
            "The console's socket is short, its owner's, and removed in success and failure.",
            "engine/test_console.py::test_the_socket_is_its_owners_and_short_lived",
            "engine/test_console.py::test_a_long_runtime_folder_is_passed_over",
            "engine/test_container_trouble.py::test_a_terminal_whose_runtime_fails_leaves_no_socket",
        ),
        "8.5 receive": pin(
            "One descriptor is taken from the engine; anything else, or nothing, fails the operation.",
            "engine/test_console.py::test_receive_takes_one_descriptor",
            "engine/test_console.py::test_receive_of_anything_else_is_an_error",
            "engine/test_console.py::test_receive_of_nothing_gives_up",
        ),
        "8.5 copy": pin(
            "Both ways are copied; stderr is the terminal's, and a path that is no fifo is refused.",
            "engine/test_console.py::test_both_ways_are_copied",
            "engine/test_console.py::test_a_terminal_needs_a_fifo",
            "integration/test_terminal.py::test_run_in_a_terminal",
            "integration/test_terminal.py::test_type_into_a_shell",
        ),
        "8.5 end": pin(
            "A slave that closes is no end; the exit is, once the rest has come through.",
            "engine/test_pump.py::test_a_terminal_nobody_has_open_is_not_over",
            "engine/test_console.py::test_output_is_drained_at_the_exit",
            "integration/test_terminal.py::test_background_child_keeps_no_terminal_open",
        ),
        "8.6 start": pin(
            "A logger gets its arguments in order, two variables and six descriptors.",
            "engine/test_binary.py::test_logger_command",
            "engine/test_binary.py::test_a_logger_gets_output_arguments_and_names",
            "integration/test_loggers.py::test_an_exec_logs_under_its_own_name",
        ),
        "8.6 ready": pin(
            "Nothing runs before its logger is ready, which one that crashed is by v1 and is not by v2.",
            "engine/test_binary.py::test_the_process_waits_for_a_logger_to_be_ready",
            "engine/test_binary.py::test_an_old_logger_that_crashes_counts_as_ready",
            "engine/test_binary.py::test_a_new_logger_must_say_that_it_is_ready",
            "integration/test_loggers.py::test_a_logger_that_is_not_ready_fails_the_create",
        ),
        "8.6 end": pin(
            "A logger sees the end of its input in Delete, then gets SIGTERM and SIGKILL.",
            "engine/test_binary.py::test_a_logger_that_goes_on_gets_sigterm",
            "engine/test_binary.py::test_a_logger_that_ignores_sigterm_is_killed",
            "integration/test_loggers.py::test_ctr_logs_to_a_program",
        ),
        "8.6 terminal": pin(
            "With a terminal the logger gets what is shown and ends by its input alone.",
            "engine/test_console.py::test_a_logger_gets_what_a_terminal_shows_and_ends_with_it",
            "integration/test_loggers.py::test_a_terminal_logs_to_a_program",
        ),
        "8.7 file": pin(
            "A file:// target is made with its folders, appended to, and takes both outputs.",
            "engine/test_stdio.py::test_a_file_takes_both_outputs",
            "integration/test_stdio.py::test_file_log",
        ),
        "8.8 streaming": pin(
            "Streams of the sandbox's socket are refused by their scheme, as by Go's shim.",
            "engine/test_stdio.py::test_an_unknown_scheme_is_refused_by_name",
        ),
    }
)
