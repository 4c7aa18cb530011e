//go:build !linux

package raw

// spliceExpected says that bytes stay in the kernel here.
const spliceExpected = false
