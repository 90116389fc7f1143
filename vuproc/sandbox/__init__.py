"""What a process of ours may do no more once it serves: powers, files, network, system calls."""
