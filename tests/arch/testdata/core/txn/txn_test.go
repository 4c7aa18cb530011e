package txn

import "time"

func clockOfTests() time.Time { return time.Now() }
