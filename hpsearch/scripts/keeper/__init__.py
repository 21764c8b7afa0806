"""The keeper: a small process that starts the scripts of one worker and ends everything that descends from them.

The worker starts it before it loads anything heavy, with one end of a SOCK_SEQPACKET pair (`client`). The process runs
`service` in isolation (-I -S, an empty environment): it imports the standard library and modules of this package that
do the same; the folder of hpsearch comes last in its path.

    worker --- keeper --- guardian --- script --- its descendants
                     \\--- guardian --- script --- ...

Each script has a guardian (`guardian`), a fork of the keeper that is a child subreaper (PR_SET_CHILD_SUBREAPER in
prctl(2)): whatever descends from the script becomes a child of its guardian when its own parent exits, even after
setsid, nohup or a double fork. A guardian ends its processes when the script's main process exits, when the keeper
asks for it, and when the keeper is gone, which it sees as the end of file on its channel. There is no race in that:
only the keeper holds the other end. The keeper ends everything when its worker is gone. Each level above is a
subreaper, too, and kills what a killed level below has left (the worker's part is in `dead_keeper`).

Signals go only to children that have not been reaped, to the process groups of such children, and through pidfds, so
a process id that was reused is never hit (`processes`).
"""
