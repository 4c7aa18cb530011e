// Package socket reads and writes TCP connections for the data path. It decides nothing about what passes, never
// dials or accepts, and changes nothing about the order or the amount of what is read and written. Start at Quick.
//
// Package net tells Go's scheduler of each system call, because it might block. A call on a socket never does: it ends
// after microseconds, or says that there is nothing yet. But where processors are few, the kernel may run somebody else
// in the middle of it, most of all in the write that wakes the other side; then the runtime takes the processor away from
// the thread, wakes another thread for it, and looks every 20 µs whether it must do so again. For a proxy, which does
// little but such calls, that was a sixth of its processor time. docs/adr/0031 has the figures.
package socket
