//go:build !linux

package processors

// ownShare returns watch.own: nobody looks at the machine here.
func ownShare() func() float64 { return func() float64 { return 0 } }

// machineShare returns watch.all.
func machineShare() func() float64 { return func() float64 { return 0 } }
