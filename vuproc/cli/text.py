"""The words of `vuproc --help`: what each verb is for, how it ends, and examples."""

from __future__ import annotations

EXIT_CODES = """\
exit codes:
  0  ok
  1  it failed while running
  2  wrong usage, or something is wrong in the device file"""

PROGRAM = """\
Serve virtio devices to virtual machines from outside the VMM, over vhost-user, with one
process a virtqueue and the devices written in Python.

A device file (YAML) says what to serve and where. QEMU, Cloud Hypervisor, crosvm,
User-Mode Linux, libblkio and other vhost-user front-ends connect to its socket."""

PROGRAM_EPILOG = f"""\
a first disk:
  truncate -s 64M disk.raw
  cat > disk.yaml <<END
  socket: ./disk.sock
  device:
    type: blk
    image: ./disk.raw
    queues: 4
  END
  vuproc check disk.yaml
  vuproc hint qemu disk.yaml
  vuproc run disk.yaml

`vuproc VERB --help` has more on each verb.

{EXIT_CODES}"""

RUN = """\
Serve the device of a device file until SIGTERM or SIGINT: then what is in flight is
finished, the socket is removed and the exit code is 0.

The file is checked first, as `vuproc check` does. The socket's mode decides who listens:
with `mode: server` vuproc does, and after one VMM has disconnected it waits for the next
on the same socket, unless the file says `exit_on_disconnect: true`. With `mode: client` it
connects, and tries again until the VMM is there. A socket file that nobody listens on is
replaced; one that is in use is an error.

A worker that dies is replaced. With --supervised the serving process is, too: a small
parent keeps the VMM's connection, its memory and its rings meanwhile, and has a second
serving process wait for the death of the first, which costs some memory (--no-standby:
none). Under systemd, which can do that by itself, there is no need for it. SIGHUP is
`vuproc reload`, SIGUSR2 is `vuproc upgrade`.

With several device files, or a folder of them (*.yaml, *.yml), each device is served by
processes of its own, which share most of their memory, and all are supervised. A device
that fails is named, and the others go on. Files that are added to the folder, or removed
from it, are taken up at once, changed ones by `vuproc reload FOLDER` or SIGHUP. Of built-in
types no worker waits for the death of another, which takes some memory (--standby: one
waits for each device).

Events worth a line go to standard error."""

RUN_EPILOG = f"""\
examples:
  vuproc run disk.yaml
  vuproc run disk.yaml --log-level debug
  vuproc run disk.yaml --supervised
  vuproc run disk.yaml --socket /run/vm1/disk.sock
  vuproc run /etc/vuproc               # every device of the folder
  vuproc run disk.yaml --fd 3          # a listening or connected socket is descriptor 3

{EXIT_CODES}"""

CHECK = """\
Check device files without running them, and without making a socket. Every error of a
file is reported on standard error, one a line:

  disk.yaml:6:3: unknown key imgae; did you mean image?

Checked are the YAML syntax, keys, types and bounds, that the image and the device class
are there and usable, and that each queue has one worker. A mistake in a class of your own is
named with the line of its file. For that the class is imported and asked what it offers; its
shared_files are opened and closed again."""

CHECK_EPILOG = f"""\
examples:
  vuproc check disk.yaml
  vuproc check --resolved disk.yaml    # with absolute paths and every default, as YAML
  vuproc check --sandbox disk.yaml     # which files, sockets and system calls are left to whom

{EXIT_CODES}"""

SCHEMA = """\
Print the JSON Schema (2020-12) of the device file, with the options of every device type
that is built in or installed. Editors complete and check device files with it."""

SCHEMA_EPILOG = f"""\
example, for editors which speak the YAML language server's protocol:
  vuproc schema > vuproc.schema.json
  and as the first line of disk.yaml:
  # yaml-language-server: $schema=./vuproc.schema.json

{EXIT_CODES}"""

DEVICES = """\
List the device types that a device file can name: those that are built in and those of
installed packages (entry point group vuproc.devices). With a name, or a reference such as
./entropy.py:Entropy, describe that type and its options."""

DEVICES_EPILOG = f"""\
examples:
  vuproc devices
  vuproc devices blk
  vuproc devices ./entropy.py:Entropy

{EXIT_CODES}"""

HINT = """\
Print the flags or the XML with which a client attaches the device of a device file, the
memory that guest and device must share included. Where a client cannot have the device,
say so."""

HINT_EPILOG = """\
examples:
  vuproc hint qemu disk.yaml
  vuproc hint qemu-microvm disk.yaml
  vuproc hint libvirt disk.yaml
  vuproc hint --memory 4G cloud-hypervisor disk.yaml
  vuproc hint kata disk.yaml

exit codes:
  0  ok
  1  the client cannot have this device
  2  wrong usage, or something is wrong in the device file"""

STATUS = """\
Show what a running device says of itself: each queue with its state, its worker's process
id, how often the worker was replaced and why, and the requests it has completed. The
device is named by its device file or by its vhost-user socket; the question goes through
the admin socket beside that, which only its owner may use. With a folder, all devices of
`vuproc run FOLDER` are shown, with those that have failed; FOLDER/NAME is one of them."""

STATUS_EPILOG = """\
states of a queue:
  stopped   the front-end has not started it
  running   it is served
  disabled  started, and held by the front-end
  waiting   no process can be had for its worker; the cause is shown, and it is tried again
  broken    nobody touches it until it is set up anew or restarted; the cause is shown

examples:
  vuproc status disk.yaml
  vuproc status --json /run/vm1/disk.sock
  vuproc status /etc/vuproc

exit codes:
  0  ok
  1  no device runs there
  2  wrong usage, or something is wrong in the device file"""

STOP = """\
Have a running device end in order, as SIGTERM does, and wait until it has. With a folder, all
devices of `vuproc run FOLDER` end, and it with them; with FOLDER/NAME one of them, which stays
stopped until its file changes or `vuproc reload FOLDER`."""

STOP_EPILOG = """\
examples:
  vuproc stop disk.yaml
  vuproc stop /etc/vuproc/disk1
  vuproc stop /etc/vuproc

exit codes:
  0  it has ended
  1  no device runs there, or it does not end
  2  wrong usage, or something is wrong in the device file"""

QUEUE = """\
`vuproc queue restart N FILE` has a broken queue served again from where its record says it
is. A queue breaks when the driver breaks a rule of the ring, or when its workers die one
after the other without completing anything; a reset of the device by the driver restarts
it, too."""

QUEUE_EPILOG = """\
example:
  vuproc queue restart 0 disk.yaml

exit codes:
  0  it is served again
  1  no device runs there, or the queue is not broken
  2  wrong usage, or something is wrong in the device file"""

LINK = """\
`vuproc link down FILE` has the driver of a network device see that its cable is out, and drops
frames both ways until `vuproc link up FILE`. It stays so over the deaths of workers and masters
and for the next guest."""

LINK_EPILOG = """\
example:
  vuproc link down net.yaml

exit codes:
  0  it is so now
  1  no network device runs there
  2  wrong usage, or something is wrong in the device file"""

RELOAD = """\
Have a running device read its device file again, as SIGHUP does. What can be applied while a
front-end is connected is applied: the log level, exit_on_disconnect, stall_timeout, who may use
the socket, changed device code with the modules from its folder, an image of another size (the
driver is told), and the options which the device takes up in new workers. Workers are replaced
one at a time and finish what is in flight. The rest is named, with the time when it takes
effect. A file that is not valid changes nothing.

With a folder, every device of `vuproc run FOLDER` that runs reads its file again, new files
are served, the devices of files that are gone end, and those that had ended are started."""

RELOAD_EPILOG = """\
examples:
  vuproc reload disk.yaml
  vuproc reload /etc/vuproc

exit codes:
  0  ok; a line for each change
  1  no device runs there, or it has refused
  2  wrong usage, or something is wrong in the device file"""

UPGRADE = """\
Have a running device go on with the code of vuproc, and of the device, that is installed now,
as SIGUSR2 does. The new code first checks the device file in a process of its own. Then the
serving process becomes the new program and takes over the front-end, its memory and its rings;
the old workers serve until then and finish what is in flight."""

UPGRADE_EPILOG = """\
example:
  pip install --upgrade vuproc && vuproc upgrade disk.yaml

exit codes:
  0  the new program has taken over
  1  no device runs there, or the new program was refused and the old one goes on
  2  wrong usage, or something is wrong in the device file"""

BACK = """\
Have a disk's changes (write_back in its device file) written to the image in pieces that they
belong to, in the object store, and wait until they are there: all that the guest had written
when this began, as of one moment."""

BACK_EPILOG = """\
example:
  vuproc write-back disk.yaml

exit codes:
  0  they are there
  1  no device runs there, nothing of it is written back, or it was not done in time: then it is
     tried on
  2  wrong usage, or something is wrong in the device file"""

IMAGE = """\
`vuproc image push FROM TO` makes an image in pieces in an object store, whose URL TO (s3://,
gs:// or az://) ends in a slash. FROM is a raw image: a file, or the URL of an object in the same
bucket, which is then the base of the new one and must stay. `vuproc image pull FROM TO` makes
the raw file TO of an image in the store, of either kind."""

IMAGE_EPILOG = """\
examples:
  vuproc image push golden.raw s3://images/web1/
  vuproc image push s3://images/golden.raw s3://images/web2/
  vuproc image pull s3://images/web1/ web1.raw

exit codes:
  0  ok
  1  it was not done; the reason is said
  2  wrong usage"""

DISCOVERY = """\
Write the files by which management software finds back-end programs (QEMU, vhost-user.json): one
for each of vuproc-blk, vuproc-net and the like that QEMU has a name for. Without FOLDER they go to
/etc/qemu/vhost-user for root, else to ~/.config/qemu/vhost-user."""

DISCOVERY_EPILOG = """\
example:
  vuproc discovery

exit codes:
  0  they are there, and their paths are printed
  1  they could not be written; the reason is said
  2  wrong usage"""

COMPLETION = """\
Print the script by which a shell completes verbs, options and files of vuproc, or of a program
such as vuproc-blk. It comes from the parsers themselves, by shtab."""

COMPLETION_EPILOG = """\
examples:
  eval "$(vuproc completion bash)"                   # in ~/.bashrc
  vuproc completion zsh > ~/.zfunc/_vuproc           # a folder of fpath
  vuproc completion bash vuproc-blk > ~/.local/share/bash-completion/completions/vuproc-blk
  vuproc completion fish > ~/.config/fish/completions/vuproc.fish

exit codes:
  0  ok
  1  shtab is not there
  2  wrong usage"""
