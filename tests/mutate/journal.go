package main

// ofJournal breaks what entries say in few bytes.
func ofJournal() []mutation {
	const codec, note, machine = "txlog/decode.go", "interceptor/note.go", "txn/machine.go"
	const survives, read, plan = "TestNoteSurvivesTheJournal", "TestEntriesOfEarlierVersionsAreRead", "TestABranchDoesNotRepeatThePlan"
	return []mutation{
		{name: "entries of version 1 are read as those of today", law: "EarlierVersions", file: codec, by: "./txlog", tests: read,
			old: "if version == 1 {", now: "if version == 0 {"},
		{name: "an entry's time loses its nanoseconds", law: "Survives", file: codec, by: "./txlog", tests: "TestEveryRecordSurvivesTheCodec",
			old: "time.Unix(sec, int64(nanos))", now: "time.Unix(sec, 0)"},
		{name: "notes of earlier journals are not read", law: "NoteSurvives", file: note, by: "./interceptor", tests: survives, quick: true,
			old: "	if b[0] == packedNote {\n", now: "	if b[0] != 0 {\n"},
		{name: "a note loses its deadline", law: "NoteSurvives", file: note, by: "./interceptor", tests: survives,
			old: "if !n.Deadline.IsZero() {", now: "if n.Deadline.IsZero() {"},
		{name: "a note loses the values of the request", law: "NoteSurvives", file: note, by: "./interceptor", tests: survives,
			old: "if string(n.Values) == \"{}\" {", now: "if len(n.Values) > 0 {"},
		{name: "a run of branches loses its last", law: "NamesOfBranches", file: "txlog/runs.go", by: "./txlog", tests: "TestNamesOfBranchesSurviveTheirRuns",
			old: "for n := first; n <= last; n++ {", now: "for n := first; n < last; n++ {"},
		{name: "a branch loses what it says of its tries", law: "DoesNotRepeat", file: machine, by: "./txn", tests: plan, quick: true,
			old: "	if b.Retry == m.s.Spec.Plan.Retry {\n", now: "	if b.ID != \"\" {\n"},
		{name: "a branch follows no call that was answered before it", law: "Follows", file: machine, by: "./txn", tests: "TestABranchFollowsWhatWasAnswered",
			old: "if c.Known[Forward].Outcome != None && !slices.Contains(named, c.ID) {", now: "if c.Known[Forward].Outcome != None && slices.Contains(named, c.ID) {"},
	}
}
