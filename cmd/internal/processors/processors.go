// Package processors decides how many threads of this process may run Go code at a time. It never takes more than a
// container was given. Start at Spare.
package processors

import (
	"os"
	"runtime"
)

// Spare lets one thread more run Go code than there are processors, for a process whose system calls the runtime does not
// see (txmesh/interceptor/socket): where the kernel puts a thread aside in one, the runtime cannot give its place to
// another. The variable GOMAXPROCS wins, and so does a limit of the container: there, a thread more would be throttled.
func Spare() {
	if n := threads(os.Getenv("GOMAXPROCS"), runtime.GOMAXPROCS(0), runtime.NumCPU()); n != runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(n)
	}
}

// threads is how many there should be, where the runtime has chosen so many for so many processors.
func threads(variable string, chosen, processors int) int {
	if variable != "" || chosen < processors {
		return chosen
	}
	return processors + 1
}
