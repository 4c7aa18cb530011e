// Package profile takes profiles of a process of ours while a benchmark runs, and tells the processor time that it has
// used. It decides neither when nor of what. Start at Take.
package profile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// Take writes a profile to a file, as the API port at host:port gives it to who has the token. What is its name below
// /debug/pprof/, with its query. One of processor time takes as long as it asks for.
func Take(ctx context.Context, api, token, what, file string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+api+"/debug/pprof/"+what, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("profile %s of %s: status %d: %s", what, api, res.StatusCode, data)
	}
	return os.WriteFile(file, data, 0o600)
}

// CPU is the processor time that a process has used, as the kernel says it.
func CPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the name of the program may have spaces
	var ticks int64
	for _, f := range fields[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
