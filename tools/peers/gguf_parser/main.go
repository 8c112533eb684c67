// Estimates of gguf-parser-go for the files named on the command line, as JSON lines: the development
// comparison of docs/reference/accuracy.md.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	parser "github.com/gpustack/gguf-parser-go"
)

func main() {
	for i := 1; i+2 < len(os.Args); i += 3 {
		file, ctx, batch := os.Args[i], os.Args[i+1], os.Args[i+2]
		n, _ := strconv.Atoi(ctx)
		ub, _ := strconv.Atoi(batch)
		f, err := parser.ParseGGUFFile(file)
		if err != nil {
			fmt.Fprintln(os.Stderr, file, err)
			continue
		}
		e := f.EstimateLLaMACppRun(
			parser.WithLLaMACppContextSize(int32(n)),
			parser.WithLLaMACppPhysicalBatchSize(int32(ub)),
			parser.WithLLaMACppLogicalBatchSize(int32(ub)),
			parser.WithFlashAttention(),
			parser.WithLLaMACppOffloadLayers(100000),
		)
		d := e.Devices[1]
		out, _ := json.Marshal(map[string]any{
			"file": file, "ctx": n, "batch": ub,
			"weights": d.Weight.Sum(), "kv": d.KVCache.Sum(), "compute": d.Computation.Sum(),
		})
		fmt.Println(string(out))
	}
}
