/** Which files are prepared, and how they are cut into pieces that are worked on one by one. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { UserError } from "../errors.ts";
import { otherKind } from "../prepare.ts";
import { type Piece, END_OF_TEXT, findInFile, formatOf, notWhole, openParquet } from "./documents.ts";
import { isWholeZstd } from "./zstd.ts";

/** Files of text cut into pieces of this size, so that there are enough for all threads and not too many to open. */
const SMALLEST = 32 << 20;
const MOST = 256;

/** The files that sources name: themselves, or the known ones directly in a directory. @throws UserError naming one */
export function listFiles(sources: string[]): string[] {
  return sources.flatMap((source) => {
    if (!existsSync(source)) throw new UserError(`${source} does not exist`, { fix: "check the path" });
    if (!statSync(source).isDirectory()) {
      if (statSync(source).size === 0) throw new UserError(`${source} is empty`, { fix: "leave it out" });
      return [source];
    }
    const names = readdirSync(source).toSorted();
    const known = names.filter((name) => formatOf(name) !== undefined && statSync(join(source, name)).size > 0);
    if (known.length === 0) {
      throw new UserError(`${source} has no file of text, JSON lines or Parquet`, {
        fix: "name files, ending in .txt, .jsonl or .parquet, the first two also with .gz or .zst",
      });
    }
    return known.map((name) => join(source, name));
  });
}

/** Cuts files where documents end. @throws UserError for a file that is damaged */
export async function cutIntoPieces(paths: string[], smallest = SMALLEST): Promise<Piece[]> {
  const total = paths.reduce((sum, path) => sum + statSync(path).size, 0);
  const target = Math.max(smallest, Math.ceil(total / MOST));
  const pieces: Piece[] = [];
  for (const path of paths) {
    const { size } = statSync(path);
    // A file of another name is taken for text.
    const { format, compression } = formatOf(path) ?? { format: "text", compression: "none" };
    if (format !== "parquet" && compression === "none") checkText(path);
    if (compression === "zstd" && !isWholeZstd(path))
      throw notWhole(path, compression, "it is cut off or something else");
    if (compression !== "none") {
      pieces.push({ path, format, compression, begin: 0, end: size, size });
    } else if (format === "parquet") {
      pieces.push(...(await parquetPieces(path, size, target)));
    } else {
      const mark = format === "text" ? END_OF_TEXT : "\n";
      for (let begin = 0; begin < size;) {
        const found = begin + target >= size ? -1 : findInFile(path, begin + target, size, [mark, "\n"]);
        const end = found < 0 ? size : found;
        pieces.push({ path, format, compression, begin, end, size: end - begin });
        begin = end;
      }
    }
  }
  return pieces;
}

/** Refuses compressed and binary files whose names do not say so, lest their bytes be taken for text. */
function checkText(path: string): void {
  const kind = otherKind(path);
  if (kind === undefined) return;
  const names = { gzip: ".txt.gz or .jsonl.gz", zstd: ".txt.zst or .jsonl.zst", Parquet: ".parquet" }[kind];
  throw new UserError(`${path} is a ${kind} file, not text`, {
    fix: `let its name end in ${names}`,
  });
}

async function parquetPieces(path: string, size: number, target: number): Promise<Piece[]> {
  const { metadata } = await openParquet(path);
  const pieces: Piece[] = [];
  let [row, begin, bytes] = [0, 0, 0];
  const total = metadata.row_groups.reduce((sum, group) => sum + Number(group.total_byte_size), 0) || 1;
  metadata.row_groups.forEach((group, i) => {
    row += Number(group.num_rows);
    bytes += (Number(group.total_byte_size) / total) * size;
    if (bytes < target && i < metadata.row_groups.length - 1) return;
    pieces.push({ path, format: "parquet", compression: "none", begin, end: row, size: bytes });
    [begin, bytes] = [row, 0];
  });
  return pieces;
}
